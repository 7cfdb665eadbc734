"""Estimate of the time and size of a run, from a sample of its images.

Nothing is written except a shard in a temporary folder, whose size is measured before it is removed.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_engine.drivers import Driver
from data_engine.slices import EngineJob, Worker
from data_engine.sources import ImageReference, Source
from sam_train.errors import ConfigError, SkipSampleError
from sam_train.records import ImageRecord
from sam_train.shards import write_shard
from sam_train.subsets import evenly_spaced_indices

NUM_SAMPLE_IMAGES = 8
MAX_SAMPLE_S = 120.0
"""Seconds after which no further image of the sample is annotated."""
_WARM_UP_S = 20.0
"""If the first image took no longer, it counts as warm-up and is annotated again: a GPU needs seconds for its first image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Measurements on a sample, and what follows for the run."""

    num_images: int
    """Number of images in the missing slices."""
    num_slices: int
    """Number of missing slices."""
    seconds: tuple[float, ...]
    """Seconds for each image of the sample, in one worker."""
    num_masks: int
    """Number of masks of the sample."""
    num_bytes: float
    """Mean size of an image in shards, with its share of tables and manifests."""
    skipped: dict[str, int]
    """Number of skipped images of the sample by reason."""
    num_workers: int
    """Number of workers that run concurrently."""

    @property
    def images_per_second(self) -> float:
        """Throughput of all workers, if they do not slow each other down."""
        return self.num_workers * len(self.seconds) / sum(self.seconds)

    @property
    def hours(self) -> float:
        """Hours for all missing slices."""
        return self.num_images / self.images_per_second / 3600

    def __str__(self) -> str:
        tried, kept = len(self.seconds), len(self.seconds) - sum(self.skipped.values())
        mean, low, high = np.mean(self.seconds), min(self.seconds), max(self.seconds)
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.skipped.items())) or "none"
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers that do not slow each other down"
        return (
            f"left: {self.num_images:,} images in {self.num_slices:,} slices\n"
            f"sample of {tried}: {mean:.3g} s per image ({low:.3g} to {high:.3g}), {self.num_masks / max(kept, 1):.1f} masks,"
            f" {self.num_bytes / 1e3:,.0f} kB; images skipped: {reasons}\n"
            f"{workers}: {self.images_per_second:.3g} images/s, {_format_duration(self.hours)},"
            f" {self.num_images * self.num_bytes / 1e9:.3g} GB"
        )


def estimate_run(job: EngineJob, source: Source, missing: Sequence[int], driver: Driver) -> RunEstimate:
    """Annotate a sample of images, evenly spaced over the `missing` slices, and measure time and size.

    Raises ConfigError if no slice is missing.
    """
    slice_size = int(job.config["images_per_shard"])
    spans = [(index * slice_size, min((index + 1) * slice_size, len(source.references))) for index in missing]
    num_images = sum(end - start for start, end in spans)
    if not num_images:
        raise ConfigError("nothing to do: every slice has its shard")
    device = str(job.config["device"])
    worker = Worker(job, device="cuda:0" if device == "cuda" else device, threads=job.config["threads"])
    references = [source.references[index] for index in _sample_indices(spans, num_images)]
    samples, seconds, skipped = _annotate_sample(worker, worker.privacy.redact_source(source), references)
    return RunEstimate(
        num_images=num_images,
        num_slices=len(spans),
        seconds=tuple(seconds),
        num_masks=sum(len(record.masks) for record, _ in samples),
        num_bytes=_shard_bytes(samples) / len(seconds),
        skipped=dict(skipped),
        num_workers=min(driver.num_workers(device), len(spans)),
    )


def _sample_indices(spans: Sequence[tuple[int, int]], num_images: int) -> list[int]:
    """Return evenly spaced indices over the spans, ordered (by bit reversal) such that every prefix is spread out too."""
    starts = np.cumsum([0] + [end - start for start, end in spans])
    positions = evenly_spaced_indices(num_images, NUM_SAMPLE_IMAGES)
    order = sorted(range(len(positions)), key=lambda k: int(f"{k:03b}"[::-1], 2))
    indices = []
    for position in (positions[k] for k in order):
        span = int(np.searchsorted(starts, position, side="right")) - 1
        indices.append(spans[span][0] + position - int(starts[span]))
    return indices


def _annotate_sample(
    worker: Worker, source: Source, references: Sequence[ImageReference]
) -> tuple[list[tuple[ImageRecord, bytes]], list[float], Counter[str]]:
    """Return the samples, the seconds per image, and the number of skipped images by reason."""
    assert worker.model is not None or not worker.stage.needs_model  # loads the model before the measurement
    started = time.perf_counter()
    first = _annotate_timed(worker, source, references[0])
    timed = [first] if first[0] > _WARM_UP_S else []
    for reference in references[len(timed) :]:
        if timed and time.perf_counter() - started > MAX_SAMPLE_S:
            break
        timed.append(_annotate_timed(worker, source, reference))
    results = [result for _, result in timed]
    skipped = Counter(result.reason for result in results if isinstance(result, SkipSampleError))
    return [r for r in results if not isinstance(r, SkipSampleError)], [seconds for seconds, _ in timed], skipped


def _annotate_timed(
    worker: Worker, source: Source, reference: ImageReference
) -> tuple[float, tuple[ImageRecord, bytes] | SkipSampleError]:
    started = time.perf_counter()
    try:
        finished = worker.infer_image(source.load(reference))()
        result: tuple[ImageRecord, bytes] | SkipSampleError = (finished.record, finished.jpeg)
    except SkipSampleError as skip:
        result = skip
    return time.perf_counter() - started, result


def _shard_bytes(samples: Sequence[tuple[ImageRecord, bytes]]) -> int:
    """Return the size in bytes of a shard of these samples with its table and manifest."""
    with tempfile.TemporaryDirectory(prefix="sam-engine-") as folder:
        write_shard(Path(folder) / "sample.tar", samples)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def _format_duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.1f} hours"
