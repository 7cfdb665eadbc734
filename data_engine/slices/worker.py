"""A slice becomes one shard, whole or not at all. The same wherever it is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from data_engine.annotators import AnnotationResult
from data_engine.ledger import Counts
from data_engine.privacy import Privacy, RedactionAudit
from data_engine.slices.claims import Claim, ClaimLostError
from data_engine.slices.job import EngineJob, ProgressListener, SliceProgress, SliceResult, SliceStatus
from data_engine.slices.listing import SliceListing
from data_engine.slices.mask_record import to_mask_record
from data_engine.slices.prefetch import BackgroundFinisher, prefetch_images
from data_engine.stages import Stage
from data_engine.structures import MASK_IDS_PER_IMAGE, RedactedBox, SourceImage
from sam_train.checkpoint import load_checkpoint
from sam_train.config import build
from sam_train.errors import SamTrainError, SkipSampleError
from sam_train.model import Sam
from sam_train.records import ImageRecord
from sam_train.shards import load_manifest, write_shard

MAX_UNREACHABLE = 20
"""Pictures in a row that cannot be had: then it is the network or a disk that is gone, and not the pictures."""
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedImage:
    """An image that goes into a shard."""

    record: ImageRecord
    jpeg: bytes
    counts: Counts
    covered: tuple[RedactedBox, ...]


class Worker:
    """Makes slices of a job, one after the other. What they need is loaded with the first.

    device: "cpu", "cuda:1" and so on. threads: of the CPU; None leaves them as they are.
    """

    def __init__(self, job: EngineJob, *, device: str, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.job, self.device, self.folder = job, device, job.folder
        self._unreachable = 0

    def run(self, index: int, watch: ProgressListener) -> SliceResult:
        """Annotate a slice and write its shard, unless it is there or another process works on it.

        Raises SamTrainError when pictures cannot be had any more, and what loading, annotating and writing raise.
        """
        if self.folder.is_done(index):
            return self._there(index)
        claim = self.folder.claim(index)
        if claim is None:
            return SliceResult(index=index, status=SliceStatus.HELD)
        with claim:
            if self.folder.is_done(index):
                return self._there(index)
            told = SliceProgress(watch)
            try:
                return self._write(index, claim, told)
            except ClaimLostError:
                told.revert()
                return SliceResult(index=index, status=SliceStatus.HELD)

    def infer_image(self, image: SourceImage) -> Callable[[], FinishedImage]:
        """What needs the model is done now, the rest by the call that comes back, in any thread. Raises SkipSampleError."""
        rest = self.stage.infer(self.model, image)
        hw, blank = image.image.shape[:2], replace(image, image=_NO_PIXELS)  # the rest has no use for the pixels
        return lambda: self._finished(blank, hw, rest())

    def _finished(self, image: SourceImage, hw: tuple[int, ...], work: AnnotationResult) -> FinishedImage:
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
            for index, mask in enumerate(work.masks)
        ]
        record = ImageRecord(key=image.key, image_id=image.image_id, width=hw[1], height=hw[0], masks=masks)
        counts = Counts(work.counts)
        counts.add(self.privacy.counts(image.redacted_boxes))
        return FinishedImage(record=record, jpeg=image.jpeg, counts=counts, covered=image.redacted_boxes)

    @cached_property
    def stage(self) -> Stage:
        """The stage that the config names."""
        stage: Stage = build(self.job.config["stage"])
        return stage

    @cached_property
    def privacy(self) -> Privacy:
        """What the config says of faces, plates and pictures that were taken down."""
        privacy: Privacy = build(self.job.config["privacy"])
        return privacy

    @cached_property
    def model(self) -> Sam | None:
        """The checkpoint's model on this worker's device."""
        checkpoint = self.job.config["checkpoint"]
        return load_checkpoint(Path(checkpoint), self.device) if checkpoint else None

    @cached_property
    def _listing(self) -> SliceListing:
        return self.folder.listing()

    def _there(self, index: int) -> SliceResult:
        manifest = load_manifest(self.folder.shard(index))
        numbers = {"images": len(manifest.keys), "masks": manifest.num_masks, "skipped": len(manifest.skipped)}
        return SliceResult(index=index, status=SliceStatus.ALREADY_DONE, **numbers)

    def _write(self, index: int, claim: Claim, watch: ProgressListener) -> SliceResult:
        began = time.perf_counter()
        skipped: dict[str, str] = {}
        counts = Counts()
        samples = self._samples(index, claim, skipped, counts, watch)
        path, provenance = self.folder.shard(index), self.job.provenance
        manifest = write_shard(path, samples, skipped=skipped, counts=counts, provenance=provenance)
        numbers = {"images": len(manifest.keys), "masks": manifest.num_masks, "skipped": len(skipped)}
        seconds = time.perf_counter() - began
        node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
        self.folder.log({"slice": index, **numbers, "seconds": round(seconds, 3), "node": node, "ended": round(time.time(), 1)})
        return SliceResult(index=index, status=SliceStatus.WRITTEN, seconds=seconds, **numbers)

    def _samples(
        self, index: int, claim: Claim, skipped: dict[str, str], counts: Counts, watch: ProgressListener
    ) -> Iterator[tuple[ImageRecord, bytes]]:
        """Each sample as it is made, so that a slice of any length needs the memory of a picture or two."""
        source, audit = self.privacy.redact_source(self._listing.slice(index)), RedactionAudit()
        with BackgroundFinisher[FinishedImage]() as finisher:
            for reference, load in prefetch_images(source, self.job.config["load_ahead"]):
                watch.begin(reference.origin)
                try:
                    finished = finisher(self.infer_image(load()))
                except SkipSampleError as skip:
                    self._count_unreachable(skip)
                    skipped[reference.origin] = skip.reason
                    watch.add(images=0, masks=0, skipped=1)
                    continue
                self._unreachable = 0
                yield from _told(finished, counts, audit, watch)
            yield from _told(finisher(None), counts, audit, watch)
        in_order = sorted(counts.items())
        counts.clear()
        counts.update(in_order)
        claim.confirm()  # the shard gets its name next
        if self.privacy.detectors:
            audit.write(self.folder.shard(index))

    def _count_unreachable(self, skip: SkipSampleError) -> None:
        self._unreachable = self._unreachable + 1 if skip.reason in ("missing", "unreachable") else 0
        if self._unreachable == MAX_UNREACHABLE:
            what_to_do = "see whether the disk or the network is there and start the same command again"
            raise SamTrainError(f"{MAX_UNREACHABLE} pictures in a row cannot be had, the last one so: {skip}; {what_to_do}")


def _told(
    made: FinishedImage | None, counts: Counts, audit: RedactionAudit, watch: ProgressListener
) -> Iterator[tuple[ImageRecord, bytes]]:
    if made is not None:
        counts.add(made.counts)
        audit.add(made.record, made.covered)
        yield made.record, made.jpeg
        watch.add(images=1, masks=len(made.record.masks), skipped=0)
