"""Export to CVAT's XML ("CVAT for images 1.1")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from sam_train.rle import decode_rle
from sam_train.shards.class_names import UNNAMED_CLASS
from sam_train.shards.exporters.classes import number_classes
from sam_train.shards.exporters.crops import mask_crop, row_runs
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.tar_members import Sample


def export_cvat(
    samples: Iterable[Sample],
    folder: ExportFolder,
    counts: Counter[str],
    *,
    shards: Sequence[Path],
    names: Path | None = None,
) -> None:
    """Write annotations.xml and the folder images, as CVAT's "CVAT for images 1.1" has them.

    A mask is a <mask> with runs, exact to the pixel. Labels are the classes of the imported data set, unused ones included, or
    those in --names; masks without a name have the label "object". Ids and scores are not written. Masks without pixels are
    skipped and counted as "mask_without_pixels". The XML of all images is in memory.

    Args:
        names: File of class names (data.yaml, or text with one name per line) whose classes are the labels.

    Raises:
        ShardError: An RLE does not have the size of its image, or a mask has a name that is not in `names`.
    """
    classes = number_classes(shards, first=1, names=names)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in classes.names.values():
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for number, sample in enumerate(samples):
        record = sample.record
        name = folder.add_image(record, sample.jpeg)
        sides = {"width": str(record.width), "height": str(record.height)}
        image = ElementTree.SubElement(root, "image", {"id": str(number), "name": f"{name}.jpg", **sides})
        for mask in record.masks:
            classes.number_of(mask.name, place=f"{sample.shard}, {record.key}, mask {mask.id}")
            pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
            if not pixels.any():
                counts["mask_without_pixels"] += 1
                continue
            part, left, top = mask_crop(pixels)
            box = {"left": left, "top": top, "width": part.shape[1], "height": part.shape[0], "z_order": 0}
            values = {"label": mask.name or UNNAMED_CLASS, "source": "file", "occluded": "0"}
            values |= {"rle": ", ".join(map(str, row_runs(part))), **{key: str(value) for key, value in box.items()}}
            ElementTree.SubElement(image, "mask", values)
    ElementTree.indent(root)
    folder.write("annotations.xml", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
