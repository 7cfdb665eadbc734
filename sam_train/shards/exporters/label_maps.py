"""Shards to label maps: one PNG of 16 bits a picture, each mask a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image

from sam_train.errors import ShardError
from sam_train.masks import decode_rle
from sam_train.records import MaskRecord
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.tar_members import Sample

_HIGHEST = 65_535


def export_label_maps(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str]) -> None:
    """Samples to out/images and out/labels/NAME.png, one image in memory at a time.

    0 is no mask; a mask's number is its id where all ids of its image are different and fit 1 to 65535, else its place in the
    record, from 1, counted by image as "renumbered". A pixel has one number: where masks overlap the smaller lies on top, of
    two of one size the later, so that parts stay visible on their wholes. Counted is what that hides: "mask_partly_hidden",
    "mask_wholly_hidden" (it is not in the map) and their "pixels_hidden"; "mask_without_pixels" has nothing to show.

    Raises ShardError for an image of more masks than there are numbers, and an RLE that does not fit its image.
    """
    for sample in samples:
        name = folder.add_image(sample.record, sample.jpeg)
        stream = BytesIO()
        Image.fromarray(draw_label_map(sample, counts)).save(stream, "PNG")
        folder.write(f"labels/{name}.png", stream.getvalue())


def draw_label_map(sample: Sample, counts: Counter[str]) -> np.ndarray:
    """The sample's label map, H x W uint16, and what it hides in `counts`."""
    record = sample.record
    numbers = _numbers(sample, counts)
    ids = np.zeros((record.height, record.width), np.uint16)
    areas = {}
    masks = sorted(zip(numbers, record.masks, strict=True), key=_area, reverse=True)
    for number, mask in masks:
        pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
        ids[pixels] = number
        areas[number] = int(pixels.sum())
    visible = dict(zip(*(found.tolist() for found in np.unique(ids, return_counts=True)), strict=True))
    for number, area in areas.items():
        hidden = area - visible.get(number, 0)
        counts.update({"pixels_hidden": hidden} if hidden else {})
        counts.update(["mask_without_pixels"] if not area else [])
        counts.update([f"mask_{'partly' if number in visible else 'wholly'}_hidden"] if hidden else [])
    return ids


def _area(numbered: tuple[int, MaskRecord]) -> int:
    return numbered[1].area


def _numbers(sample: Sample, counts: Counter[str]) -> list[int]:
    ids = [mask.id for mask in sample.record.masks]
    if len(ids) > _HIGHEST:
        message = f"{len(ids)} masks are more than the {_HIGHEST} numbers of a label map: export to coco"
        raise ShardError(message, shard=sample.shard, key=sample.record.key)
    if len(set(ids)) == len(ids) and all(1 <= number <= _HIGHEST for number in ids):
        return ids
    counts["renumbered"] += 1
    return list(range(1, len(ids) + 1))
