"""Folders of pictures and of label maps, the form of DSB 2018 nuclei, cell tracking and most of microscopy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError, SkipSample
from sam_train.masks import encode_rle, mask_to_box_xywh
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards.keys import image_id_from_path, keys_from_paths
from sam_train.shards.pictures import PICTURE_EXTENSIONS, load_picture, open_picture

_ANNOTATOR = "label_maps"


def import_label_maps(
    images: Path, labels: Path, *, min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Pairs `images/STEM.*` and `labels/STEM.png` to records and JPEG bytes, in name order.

    A label map is a PNG of one channel with 8 or 16 bits: 0 is no instance, each other value one instance, whose value
    becomes the mask's id. It must have the size of its picture seen upright. Instances below `min_area` pixels are left
    out and counted as "below_min_area". A picture without instances yields a record without masks.

    Raises ShardError, naming the file, for a picture without label map or the reverse, a pair of two sizes, or a file of
    a pair that cannot be read: an import is whole or stops.
    """
    counts = Counter() if counts is None else counts
    pairs = _pairs(images, labels)
    keys = keys_from_paths([image.name for image, _ in pairs])
    for key, (image, label) in zip(keys, pairs, strict=True):
        try:
            picture = load_picture(image, key=key)
        except SkipSample as error:
            raise ShardError(f"{image}: {error}; mend it, or take it and its label map away") from error
        height, width = picture.image.shape[:2]
        ids = read_label_map(label)
        if ids.shape != (height, width):
            message = f"{label} is {ids.shape[1]} x {ids.shape[0]}, its picture seen upright {width} x {height}"
            raise ShardError(f"{message}: they must be of one size", key=key)
        masks = _masks(ids, min_area, counts)
        yield ImageRecord(key=key, image_id=image_id_from_path(image.name), width=width, height=height, masks=masks), picture.jpeg


def read_label_map(path: Path) -> np.ndarray:
    """A PNG of instance ids to H x W uint8 or uint16; palette PNGs give their indices.

    Raises ShardError for anything else, naming the file.
    """
    try:
        header = open_picture(path.read_bytes(), name=path.name)
        if header.format != "PNG" or not (header.mode in ("1", "L", "P") or header.mode.startswith("I;16")):
            raise ShardError(f"{path} is {header.format} of mode {header.mode}: a label map is a PNG of one 8 or 16 bit channel")
        header.load()
    except SkipSample as error:
        raise ShardError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} does not decode: {error}") from error
    ids = np.asarray(header)
    return ids.astype(np.uint16 if ids.dtype.itemsize == 2 else np.uint8)


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    pictures, maps = _by_stem(images, PICTURE_EXTENSIONS), _by_stem(labels, (".png",))
    if not pictures:
        raise ShardError(f"no pictures in {images}: expected files ending in {' '.join(PICTURE_EXTENSIONS)}")
    for stem in sorted(pictures.keys() ^ maps.keys()):
        if stem in pictures:
            raise ShardError(f"{pictures[stem]} has no label map: expected {labels / stem}.png")
        raise ShardError(f"{maps[stem]} has no picture: expected {images / stem} with one of {' '.join(PICTURE_EXTENSIONS)}")
    return [(pictures[stem], maps[stem]) for stem in sorted(pictures)]


def _by_stem(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in extensions and not path.name.startswith("."):
            if path.stem in found:
                raise ShardError(f"{found[path.stem]} and {path.name} differ in extension only: leave one out")
            found[path.stem] = path
    return found


def _masks(ids: np.ndarray, min_area: int, counts: Counter[str]) -> list[MaskRecord]:
    height, width = ids.shape
    records = []
    for instance, area in zip(*np.unique(ids, return_counts=True), strict=True):
        if instance == 0:
            continue
        if area < min_area:
            counts["below_min_area"] += 1
            continue
        mask = ids == instance
        records.append(
            MaskRecord(
                id=int(instance),
                segmentation=encode_rle(mask),
                bbox=mask_to_box_xywh(mask),
                area=int(area),
                predicted_iou=1.0,
                stability_score=1.0,
                crop_box=[0.0, 0.0, float(width), float(height)],
                point_coords=[],
                provenance=Provenance(stage="import", checkpoint="", annotator=_ANNOTATOR, config=""),
            )
        )
    return records
