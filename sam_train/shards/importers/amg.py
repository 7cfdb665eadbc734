"""Import of the masks that SAM's `scripts/amg.py` writes: a JSON per image, or a folder of PNGs with metadata.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.rle import encode_rle
from sam_train.shards.importers.file_pairing import images_by_stem
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_files import read_label_map
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.sa1b_json import parse_sa1b_json

_COLUMNS = ("id", "predicted_iou", "stability_score")


@importer(default_frame="upright")
def import_amg(images: Path, labels: Path, *, report: ImportReport) -> list[ImageItem]:
    """Import the output of SAM's mask generator (scripts/amg.py) with the images that it was given, in the order of names.

    The masks of images/STEM.* are labels/STEM.json (--convert-to-rle) or labels/STEM/*.png with labels/STEM/metadata.csv. Scores,
    crop boxes and points are kept from the JSON, scores from metadata.csv. The generator reads images upright. Ids are the
    numbers of the PNGs, or places in the JSON from 1. An image without output is counted as "label_missing".

    Args:
        images: Folder of the images.
        labels: Output folder of the generator.

    Raises:
        ShardError: Names the file, for output without an image, JSON that is not the generator's, a missing or invalid
            metadata.csv, and masks that do not fit their image.
    """
    if not labels.is_dir():
        raise ShardError(f"no such folder: {labels}")
    found = images_by_stem(images, report=report)
    outputs = {path.stem if path.is_file() else path.name: path for path in sorted(labels.iterdir()) if _is_output(path)}
    if not outputs:
        raise ShardError(f"no output of the generator in {labels}: expected STEM.json, or STEM/metadata.csv and STEM/*.png")
    for stem in sorted(outputs.keys() ^ found.keys()):
        if stem in found:
            report.absent("label_missing", str(found[stem]), f"{found[stem]} has no masks in {labels}")
        else:
            report.absent("image_missing", str(outputs[stem]), f"{outputs[stem]} has no image: expected {images / stem}.*")
    return [
        ImageItem(
            name=path.relative_to(images).as_posix(),
            file=DiskFile(path),
            masks=partial(_masks, outputs[stem], path, report),
        )
        for stem, path in sorted(found.items())
        if stem in outputs
    ]


def _is_output(path: Path) -> bool:
    return path.suffix == ".json" if path.is_file() else (path / "metadata.csv").is_file()


def _masks(output: Path, image: Path, report: ImportReport, height: int, width: int) -> Iterator[MaskRecord]:
    if output.is_dir():
        yield from _masks_of_folder(output, report, height, width)
        return
    size, place = (width, height), str(output)
    data = output.read_bytes()
    yield from parse_sa1b_json(data, file_name=image.name, key="image", size=size, place=place, report=report).masks


def _masks_of_folder(folder: Path, report: ImportReport, height: int, width: int) -> Iterator[MaskRecord]:
    path = folder / "metadata.csv"
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        place = f"{path}, id {str(row.get('id'))[:40]}"
        with report.entry("annotation", place):
            try:
                number, iou, stability = (float(row[name] or "") for name in _COLUMNS)
            except (KeyError, ValueError) as error:
                raise ShardError(f"{place}: expected numbers in the columns {', '.join(_COLUMNS)}") from error
            mask_path = folder / f"{int(number)}.png"
            if not mask_path.is_file():
                report.absent("mask_missing", str(mask_path), f"{place}: no such file: {mask_path}")
                continue
            mask = read_label_map(mask_path, threshold=0) > 0
            check_matches_image_size(mask_path, mask, height=height, width=width)
            if not mask.any():
                report.counts["mask_without_pixels"] += 1
                continue
            record = mask_record_from_rle(encode_rle(mask), mask_id=int(number), annotator="amg")
            yield replace(record, predicted_iou=iou, stability_score=stability)
