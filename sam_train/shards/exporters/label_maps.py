"""Export to label maps: one 16-bit PNG per image, one value per mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.rle import decode_rle
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.tar_members import Sample

_MAX_LABEL = 65_535


def export_label_maps(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str]) -> None:
    """Write the folders images and labels, with one 16-bit PNG per image.

    The value 0 is background. A mask has its id as value if all ids of its image are distinct and in 1 to 65535, else its index
    in the record, from 1; such images are counted as "renumbered". A pixel has one value: where masks overlap, the smaller one
    is on top, and of two of equal size the later one, so that parts stay visible on their wholes. Masks that this hides are
    counted as "mask_partly_hidden" or "mask_wholly_hidden" (missing from the map), and their pixels as "pixels_hidden"; masks
    without pixels as "mask_without_pixels".

    One image is in memory at a time.

    Raises:
        ShardError: An image has more masks than there are values, or an RLE does not have the size of its image.
    """
    for sample in samples:
        name = folder.add_image(sample.record, sample.jpeg)
        stream = BytesIO()
        Image.fromarray(draw_label_map(sample, counts)).save(stream, "PNG")
        folder.write(f"labels/{name}.png", stream.getvalue())


def draw_label_map(sample: Sample, counts: Counter[str], *, labels: list[int] | None = None) -> np.ndarray:
    """Draw the label map of a sample, H x W uint16, and count in `counts` what it hides.

    `labels` are the values of the masks, their ids where possible by default.
    """
    record = sample.record
    labels = _labels(sample, counts) if labels is None else labels
    label_map = np.zeros((record.height, record.width), np.uint16)
    areas = {}
    masks = sorted(zip(labels, record.masks, strict=True), key=_area, reverse=True)
    for label, mask in masks:
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
        label_map[pixels] = label
        areas[label] = int(pixels.sum())
    visible = dict(zip(*(column.tolist() for column in np.unique(label_map, return_counts=True)), strict=True))
    for label, area in areas.items():
        hidden = area - visible.get(label, 0)
        counts.update({"pixels_hidden": hidden} if hidden else {})
        counts.update(["mask_without_pixels"] if not area else [])
        counts.update([f"mask_{'partly' if label in visible else 'wholly'}_hidden"] if hidden else [])
    return label_map


def _area(labelled: tuple[int, MaskRecord]) -> int:
    return labelled[1].area


def _labels(sample: Sample, counts: Counter[str]) -> list[int]:
    ids = [mask.id for mask in sample.record.masks]
    if len(ids) > _MAX_LABEL:
        message = f"{len(ids)} masks are more than the {_MAX_LABEL} values of a label map: export to coco"
        raise ShardError(message, shard=sample.shard, key=sample.record.key)
    if len(set(ids)) == len(ids) and all(1 <= mask_id <= _MAX_LABEL for mask_id in ids):
        return ids
    counts["renumbered"] += 1
    return list(range(1, len(ids) + 1))
