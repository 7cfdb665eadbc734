"""How long a run would take and how large it would be, from a few of its pictures. Nothing is written but a shard in a
temporary folder, which is weighed and gone."""

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

SAMPLE = 8
AT_MOST_S = 120.0
"""After which no further picture is tried."""
_WARM_UP_S = 20.0
"""A first picture that took no longer is taken again: a GPU needs seconds for its first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """What was measured, and what follows."""

    num_images: int
    """Pictures that are left."""
    num_slices: int
    seconds: tuple[float, ...]
    """Of each picture that was tried, in the process that tries."""
    num_masks: int
    num_bytes: float
    """Of a picture in shards, everything included."""
    skipped: dict[str, int]
    """Pictures of the sample by the reason for which they would be left out."""
    width: int
    """Workers at once."""

    @property
    def images_per_second(self) -> float:
        """Of all workers, if they do not slow each other down."""
        return self.width * len(self.seconds) / sum(self.seconds)

    @property
    def hours(self) -> float:
        """For all pictures that are left."""
        return self.num_images / self.images_per_second / 3600

    def __str__(self) -> str:
        tried, kept = len(self.seconds), len(self.seconds) - sum(self.skipped.values())
        mean, low, high = np.mean(self.seconds), min(self.seconds), max(self.seconds)
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.skipped.items())) or "none"
        workers = "1 worker" if self.width == 1 else f"{self.width} workers that do not slow each other down"
        return (
            f"left: {self.num_images:,} images in {self.num_slices:,} slices\n"
            f"sample of {tried}: {mean:.3g} s an image ({low:.3g} to {high:.3g}), {self.num_masks / max(kept, 1):.1f} masks,"
            f" {self.num_bytes / 1e3:,.0f} kB; images skipped: {reasons}\n"
            f"{workers}: {self.images_per_second:.3g} images/s, {_duration(self.hours)},"
            f" {self.num_images * self.num_bytes / 1e9:.3g} GB"
        )


def estimate_run(job: EngineJob, source: Source, left: Sequence[int], driver: Driver) -> RunEstimate:
    """Annotate pictures spread over the slices in `left` and count. Raises ConfigError when nothing is left."""
    size = int(job.config["images_per_shard"])
    places = [place for index in left for place in (index * size, min((index + 1) * size, len(source.references)))]
    spans = list(zip(places[::2], places[1::2], strict=True))
    num_images = sum(end - start for start, end in spans)
    if not num_images:
        raise ConfigError("nothing is left to do: every slice has its shard")
    device = str(job.config["device"])
    worker = Worker(job, device="cuda:0" if device == "cuda" else device, threads=job.config["threads"])
    references = [source.references[place] for place in _spread(spans, num_images)]
    made, seconds, skipped = _tried(worker, worker.privacy.redact_source(source), references)
    return RunEstimate(
        num_images=num_images,
        num_slices=len(spans),
        seconds=tuple(seconds),
        num_masks=sum(len(record.masks) for record, _ in made),
        num_bytes=_weight(made) / len(seconds),
        skipped=dict(skipped),
        width=min(driver.width(device), len(spans)),
    )


def _spread(spans: Sequence[tuple[int, int]], num_images: int) -> list[int]:
    """Places at equal distances over the spans, in an order in which any beginning is spread too."""
    starts = np.cumsum([0] + [end - start for start, end in spans])
    wanted = evenly_spaced_indices(num_images, SAMPLE)
    order = sorted(range(len(wanted)), key=lambda k: int(f"{k:03b}"[::-1], 2))
    found = []
    for position in (wanted[k] for k in order):
        span = int(np.searchsorted(starts, position, side="right")) - 1
        found.append(spans[span][0] + position - int(starts[span]))
    return found


def _tried(
    worker: Worker, source: Source, references: Sequence[ImageReference]
) -> tuple[list[tuple[ImageRecord, bytes]], list[float], Counter[str]]:
    assert worker.model is not None or not worker.stage.needs_model  # loaded before the clock runs
    began = time.perf_counter()
    first = _timed(worker, source, references[0])
    tried = [first] if first[0] > _WARM_UP_S else []
    for reference in references[len(tried) :]:
        if tried and time.perf_counter() - began > AT_MOST_S:
            break
        tried.append(_timed(worker, source, reference))
    results = [result for _, result in tried]
    skipped = Counter(result.reason for result in results if isinstance(result, SkipSampleError))
    return [r for r in results if not isinstance(r, SkipSampleError)], [seconds for seconds, _ in tried], skipped


def _timed(
    worker: Worker, source: Source, reference: ImageReference
) -> tuple[float, tuple[ImageRecord, bytes] | SkipSampleError]:
    began = time.perf_counter()
    try:
        made = worker.infer_image(source.load(reference))()
        result: tuple[ImageRecord, bytes] | SkipSampleError = (made.record, made.jpeg)
    except SkipSampleError as skip:
        result = skip
    return time.perf_counter() - began, result


def _weight(samples: Sequence[tuple[ImageRecord, bytes]]) -> int:
    """Bytes of a shard of these samples with its table and manifest."""
    with tempfile.TemporaryDirectory(prefix="sam-engine-") as folder:
        write_shard(Path(folder) / "sample.tar", samples)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.1f} hours"
