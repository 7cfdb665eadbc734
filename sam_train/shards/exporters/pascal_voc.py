"""Export to Pascal VOC's layout of segmentations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from sam_train.errors import ShardError
from sam_train.shards.class_names import UNNAMED_CLASS
from sam_train.shards.exporters.classes import number_classes
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.label_maps import draw_label_map
from sam_train.shards.importers.colour_masks import voc_colour
from sam_train.shards.tar_members import Sample

_MAX_INDEX = 254
_PALETTE = [side for index in range(256) for side in voc_colour(index)]


def export_voc(
    samples: Iterable[Sample],
    folder: ExportFolder,
    counts: Counter[str],
    *,
    shards: Sequence[Path],
    names: Path | None = None,
) -> None:
    """Write JPEGImages, SegmentationObject, SegmentationClass, ImageSets/Segmentation/default.txt and labelmap.txt.

    Maps are PNGs with VOC's palette. Masks of an image are numbered from 1 in the order of the record, classes in the order of
    the imported data set or of --names; ids and scores are not written. A pixel has one value: where masks overlap, the smaller
    one is on top, as in `sam-data export label_maps`, with the same counts. There is no void border.

    Args:
        names: File of class names (data.yaml, or text with one name per line) whose order numbers the classes.

    Raises:
        ShardError: An image has more than 254 masks, there are more than 254 classes, an RLE does not have the size of its image,
            or a mask has a name that is not in `names`.
    """
    numbering = number_classes(shards, first=1, names=names)
    classes = {name: n for n, name in enumerate(numbering.names.values(), start=1)}
    if len(classes) > _MAX_INDEX:
        raise ShardError(f"{len(classes)} classes are more than the {_MAX_INDEX} of a VOC map: export to coco")
    written = []
    for sample in samples:
        record = sample.record
        if len(record.masks) > _MAX_INDEX:
            message = f"{len(record.masks)} masks are more than the {_MAX_INDEX} of a VOC map: export to label_maps or coco"
            raise ShardError(message, shard=sample.shard, key=record.key)
        name = folder.add_image(record, sample.jpeg, folder="JPEGImages")
        places = draw_label_map(sample, counts, labels=list(range(1, len(record.masks) + 1)))
        for mask in record.masks:
            numbering.number_of(mask.name, place=f"{sample.shard}, {record.key}, mask {mask.id}")
        numbers = np.array([0, *(classes[mask.name or UNNAMED_CLASS] for mask in record.masks)], np.uint8)
        folder.write(f"SegmentationObject/{name}.png", _png(places.astype(np.uint8)))
        folder.write(f"SegmentationClass/{name}.png", _png(numbers[places]))
        written.append(name)
    folder.write("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in written).encode())
    lines = ["# label:color_rgb:parts:actions"]
    for name, number in {"background": 0, **classes}.items():
        lines.append(f"{name}:{','.join(map(str, voc_colour(number)))}::")
    folder.write("labelmap.txt", ("\n".join(lines) + "\n").encode())


def _png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values)
    image.putpalette(_PALETTE)
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
