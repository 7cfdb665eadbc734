"""The worker that annotates a slice and writes it as one shard, atomically. Every driver uses it, so the bytes are the same."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch

from data_engine.annotators import AnnotationResult
from data_engine.ledger import Counts
from data_engine.privacy import Privacy, RedactionAudit
from data_engine.slices.job import EngineJob, ProgressListener, SliceProgress, SliceResult, SliceStatus
from data_engine.slices.mask_record import to_mask_record
from data_engine.slices.prefetch import BackgroundFinisher, prefetch_images
from data_engine.slices.run_folder import EngineRunFolder
from data_engine.slices.slice_listing import SliceListing
from data_engine.stages import Stage
from data_engine.structures import MASK_IDS_PER_IMAGE, RedactedBox, SourceImage
from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.claims import Claim, ClaimLostError
from sam_train.config import build
from sam_train.errors import ConfigError, SamTrainError, SkipSampleError
from sam_train.model import Sam
from sam_train.records import ImageRecord
from sam_train.shards import load_manifest, write_shard

log = logging.getLogger(__name__)

MAX_UNREACHABLE = 20
"""Number of consecutive unavailable images after which the run ends, because the network or a disk has probably failed."""
MAX_FAILED = 20
"""Number of consecutive images whose annotation raised an exception after which the run ends, because none will succeed."""
FAILED = "annotation_failed"
"""Reason under which an image is skipped that made the stage raise an exception."""
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedImage:
    """An annotated image, ready to be written into a shard."""

    record: ImageRecord
    jpeg: bytes
    counts: Counts
    redacted_boxes: tuple[RedactedBox, ...]


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """An image that is not written into a shard."""

    origin: str
    error: SkipSampleError


class Worker:
    """Makes slices of a job, one after the other. Stage, model and detectors are loaded at their first use.

    device: "cpu", "cuda:1" and so on. threads: number of CPU threads of torch; None leaves it unchanged.
    """

    def __init__(self, job: EngineJob, *, device: str, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.job, self.device, self.folder = job, device, job.folder
        self._num_unreachable = self._num_failed = 0

    def process_slice(self, index: int, listener: ProgressListener) -> SliceResult:
        """Annotate slice `index` and write its shard, unless the shard exists or another process holds the slice.

        Raises SamTrainError if too many consecutive images are unavailable, and what loading, annotating and writing raise.
        """
        if self.folder.is_done(index):
            return existing_result(self.folder, index)
        claim = self.folder.claim_slice(index)
        if claim is None:
            return SliceResult(index=index, status=SliceStatus.HELD_ELSEWHERE)
        with claim:
            if self.folder.is_done(index):
                return existing_result(self.folder, index)
            progress = SliceProgress(listener)
            try:
                return self._write(index, claim, progress)
            except ClaimLostError:
                progress.revert()
                return SliceResult(index=index, status=SliceStatus.HELD_ELSEWHERE)

    def infer_image(self, image: SourceImage) -> Callable[[], FinishedImage]:
        """Run the model on an image now; the returned call does the rest, in any thread.

        Both raise SkipSampleError if the image cannot be used, with reason `FAILED` if it made the stage raise an exception.
        """
        with _failures_as_skips(image.origin):
            finish_masks = self.stage.infer(self.model, image)
        hw, without_pixels = image.image.shape[:2], replace(image, image=_NO_PIXELS)  # the returned call needs no pixels

        def finish() -> FinishedImage:
            with _failures_as_skips(image.origin):
                return self._finish(without_pixels, hw, finish_masks())

        return finish

    def _finish(self, image: SourceImage, hw: tuple[int, ...], annotations: AnnotationResult) -> FinishedImage:
        first_id = image.image_id * MASK_IDS_PER_IMAGE
        masks = [
            to_mask_record(
                mask,
                index,
                first_id=first_id,
                stage=self.stage.name,
                annotator=self.stage.annotator_name,
                checkpoint=self.job.provenance["checkpoint"],
                config=self.job.provenance["config"],
            )
            for index, mask in enumerate(annotations.masks)
        ]
        record = ImageRecord(key=image.key, image_id=image.image_id, width=hw[1], height=hw[0], masks=masks)
        counts = Counts(annotations.counts)
        counts.add(self.privacy.counts(image.redacted_boxes))
        return FinishedImage(record=record, jpeg=image.jpeg, counts=counts, redacted_boxes=image.redacted_boxes)

    @cached_property
    def stage(self) -> Stage:
        """The stage that the config names."""
        stage: Stage = build(self.job.config["stage"])
        return stage

    @cached_property
    def privacy(self) -> Privacy:
        """Redaction of faces and plates, and the take-down list, as the config names them.

        Raises ConfigError if this machine would redact otherwise than the one that started the run, such as without a detector.
        """
        privacy: Privacy = build(self.job.config["privacy"])
        expected = self.job.provenance["privacy"]
        if privacy.identity() != expected:
            message = f"this worker would redact images by {privacy.identity()}, but the run was started with {expected}"
            raise ConfigError(f"{message}: install the same detectors on every machine. {privacy.warning()}".rstrip(" ."))
        return privacy

    @cached_property
    def model(self) -> Sam | None:
        """The checkpoint's model on this worker's device; None without a checkpoint.

        Raises ConfigError if the file is not the one whose hash the provenance of the masks states.
        """
        checkpoint, expected = self.job.config["checkpoint"], self.job.provenance["checkpoint"]
        if not checkpoint:
            return None
        if (found := checkpoint_hash(checkpoint)) != expected:
            changed = f"{checkpoint} has SHA-256 {found[:12]}, but it had {expected[:12]} when the run started"
            raise ConfigError(f"{changed}: restore it, or start the command again with another out=")
        return load_checkpoint(checkpoint, self.device)

    @cached_property
    def _listing(self) -> SliceListing:
        return self.folder.listing()

    def _write(self, index: int, claim: Claim, listener: ProgressListener) -> SliceResult:
        started = time.perf_counter()
        skipped: dict[str, str] = {}
        counts = Counts()
        samples = self._samples(index, claim, skipped, counts, listener)
        path, provenance = self.folder.shard_path(index), self.job.provenance
        manifest = write_shard(path, samples, skipped=skipped, counts=counts, provenance=provenance)
        totals = {"images": len(manifest.keys), "masks": manifest.num_masks, "skipped": len(skipped)}
        seconds = time.perf_counter() - started
        node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        entry = {"slice": index, **totals, "seconds": round(seconds, 3), "node": node, "ended": round(time.time(), 1)}
        self.folder.log_slice(entry)
        return SliceResult(index=index, status=SliceStatus.WRITTEN, seconds=seconds, **totals)

    def _samples(
        self, index: int, claim: Claim, skipped: dict[str, str], counts: Counts, listener: ProgressListener
    ) -> Iterator[tuple[ImageRecord, bytes]]:
        """Yield each sample when it is finished, so that memory is bounded by a few images, whatever the size of the slice."""
        source, audit = self.privacy.redact_source(self._listing.slice(index)), RedactionAudit()

        def add(result: FinishedImage | SkippedImage | None) -> Iterator[tuple[ImageRecord, bytes]]:
            if isinstance(result, SkippedImage):
                self._count_consecutive(result.error)
                skipped[result.origin] = result.error.reason
                listener.advance(images=0, masks=0, skipped=1)
            elif result is not None:
                self._num_failed = 0
                counts.add(result.counts)
                audit.add(result.record, result.redacted_boxes)
                yield result.record, result.jpeg
                listener.advance(images=1, masks=len(result.record.masks), skipped=0)

        with BackgroundFinisher[FinishedImage | SkippedImage]() as finisher:
            for reference, load in prefetch_images(source, self.job.config["num_prefetch"]):
                listener.start_image(reference.origin)
                try:
                    with _failures_as_skips(reference.origin):
                        finish = self.infer_image(load())
                except SkipSampleError as skip:
                    yield from add(SkippedImage(reference.origin, skip))
                    continue
                self._num_unreachable = 0
                yield from add(finisher(partial(_finished_or_skipped, reference.origin, finish)))
            yield from add(finisher(None))
        sorted_counts = sorted(counts.items())
        counts.clear()
        counts.update(sorted_counts)
        claim.confirm()  # the shard is renamed into place next
        if self.privacy.detectors:
            audit.write(self.folder.shard_path(index))

    def _count_consecutive(self, skip: SkipSampleError) -> None:
        self._num_unreachable = self._num_unreachable + 1 if skip.reason in ("missing", "unreachable") else 0
        if self._num_unreachable == MAX_UNREACHABLE:
            remedy = "check the disk or the network and start the same command again"
            raise SamTrainError(f"{MAX_UNREACHABLE} consecutive images are unavailable, the last one: {skip}; {remedy}")
        self._num_failed += skip.reason == FAILED
        if self._num_failed == MAX_FAILED:
            message = f"{MAX_FAILED} images failed one after the other, the last one: {skip}"
            raise SamTrainError(f"{message}; the log has the tracebacks") from skip


def existing_result(folder: EngineRunFolder, index: int) -> SliceResult:
    """Return the result of a slice whose shard is complete, from its manifest."""
    manifest = load_manifest(folder.shard_path(index))
    totals = {"images": len(manifest.keys), "masks": manifest.num_masks, "skipped": len(manifest.skipped)}
    return SliceResult(index=index, status=SliceStatus.ALREADY_DONE, **totals)


def _finished_or_skipped(origin: str, finish: Callable[[], FinishedImage]) -> FinishedImage | SkippedImage:
    try:
        return finish()
    except SkipSampleError as skip:
        return SkippedImage(origin, skip)


@contextmanager
def _failures_as_skips(origin: str) -> Iterator[None]:
    """Log an exception that concerns one image and raise SkipSampleError in its place, so that the slice continues.

    What concerns the whole run is raised unchanged: errors of the configuration or the disk, and a lack of memory.
    """
    try:
        yield
    except (SamTrainError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.warning("%s is skipped, because its annotation failed", origin, exc_info=True)
        raise SkipSampleError(FAILED, f"{origin}: {type(error).__name__}: {error}") from error
