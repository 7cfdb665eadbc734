"""Report of an engine run: a contact sheet and the paper's mask statistics. Of a large run it shows a sample, at bounded cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from sam_train.files import atomic_write_bytes
from sam_train.shards import decode_jpeg, done_shards, encode_jpeg, load_manifest
from sam_train.shards.drawing import draw_masks
from sam_train.shards.index import index_shard, read_sample
from sam_train.shards.maintenance.statistics.measure import Statistics, measure_shard
from sam_train.shards.tar_members import Sample
from sam_train.subsets import evenly_spaced_indices

NUM_TILES, COLUMNS = 30, 6
TILE_HW = (240, 320)
MARGIN_PX, CAPTION_PX = 6, 18
BACKGROUND_RGB, TEXT_RGB = (24, 24, 28), (205, 205, 210)
MAX_MEASURED_IMAGES = 2000
"""Approximate number of images that are measured, in whole shards spread over the run. `sam-data stats` measures all."""


def write_run_summary(out: Path, report: Path, *, name: str) -> Path:
    """Write `report`/contact_sheet.jpg of the shards in `out`, and stats.html and stats.json if there are masks.

    Returns the path of stats.html, or of the contact sheet if there are no masks. Raises ShardError for a corrupt shard.
    """
    shards = done_shards(out)
    sizes = [len(load_manifest(shard).keys) for shard in shards]
    sheet = report / "contact_sheet.jpg"
    samples = list(iterate_evenly_spaced_samples(shards, sizes, NUM_TILES))
    atomic_write_bytes(sheet, encode_jpeg(draw_contact_sheet(samples), quality=88))
    return _write_statistics(shards, sizes, report, name) or sheet


def draw_contact_sheet(samples: Sequence[Sample]) -> np.ndarray:
    """Return an HWC uint8 RGB grid of images with their masks; below each image stand its number of masks and its key."""
    height, width = TILE_HW
    rows, columns = -(-len(samples) // COLUMNS), min(len(samples), COLUMNS)
    step_y, step_x = height + CAPTION_PX + MARGIN_PX, width + MARGIN_PX
    sheet = np.full((rows * step_y + MARGIN_PX, columns * step_x + MARGIN_PX, 3), BACKGROUND_RGB, np.uint8)
    for index, sample in enumerate(samples):
        y, x = (index // COLUMNS) * step_y + MARGIN_PX, (index % COLUMNS) * step_x + MARGIN_PX
        tile = draw_masks(_resize_to_tile(sample), sample.record, shard=sample.shard)
        top, left = y + (height - tile.shape[0]) // 2, x + (width - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        num_masks = len(sample.record.masks)
        text = f"{num_masks} mask{'s' * (num_masks != 1)}  {sample.record.key}"[:46]
        cv2.putText(sheet, text, (x + 2, y + height + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, TEXT_RGB, 1, cv2.LINE_AA)
    return sheet


def iterate_evenly_spaced_samples(shards: Sequence[Path], sizes: Sequence[int], count: int) -> Iterator[Sample]:
    """Yield at most `count` samples, evenly spaced over all shards. sizes: number of samples of each shard."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    for position in evenly_spaced_indices(total, count):
        shard = int(np.searchsorted(ends, position, side="right"))
        yield read_sample(index_shard(shards[shard])[position - int(ends[shard]) + sizes[shard]])


def _resize_to_tile(sample: Sample) -> np.ndarray:
    """Return the image resized to fit a tile. Small images are enlarged, so that lines drawn on them stay thin."""
    image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
    scale = min(TILE_HW[0] / image.shape[0], TILE_HW[1] / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _write_statistics(shards: Sequence[Path], sizes: Sequence[int], report: Path, name: str) -> Path | None:
    from sam_train.shards.maintenance.statistics.figures import draw_all  # imports matplotlib, which takes seconds
    from sam_train.shards.maintenance.statistics.page import as_document, render

    step = max(1, round(sum(sizes) / MAX_MEASURED_IMAGES))
    total, measured = Statistics(), shards[::step]
    for shard in measured:
        total.add(measure_shard(shard, lambda _: None))
    if not total.num_masks:
        return None
    about = name if step == 1 else f"{name}: {len(measured)} of {len(shards)} shards"
    atomic_write_bytes(report / "stats.json", (json.dumps(as_document(total), indent=1) + "\n").encode())
    atomic_write_bytes(report / "stats.html", render(total, draw_all(total), name=about).encode())
    return report / "stats.html"
