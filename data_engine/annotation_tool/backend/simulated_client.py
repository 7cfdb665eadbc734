"""Simulated annotation: a simulated annotator that uses the same API as the page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pycocotools import mask as coco_mask

from data_engine.annotation_tool.backend.client import AnnotationClient, RemotePredictor
from data_engine.annotation_tool.backend.mask_store import AnnotatedMask
from data_engine.annotators.simulated import SimulatedAnnotator
from data_engine.ledger import Counts
from data_engine.sources import Source
from data_engine.structures import SourceImage
from sam_train.inference import GeneratedMask, MaskOrigin

SAME_OBJECT_IOU = 0.5
"""A proposed mask that overlaps a new mask by at least this IoU is corrected to it instead of deleted."""
_ORIGINS = {MaskOrigin.CLICKED: "clicked", MaskOrigin.DRAWN: "drawn", MaskOrigin.GENERATED: "proposed"}


class SimulatedClient:
    """A simulated annotator that works through the queue of a server.

    ground_truth: the corpus of the server, with the masks to annotate. time_scale: seconds to wait per second of simulated work;
    0 does not wait.
    """

    def __init__(
        self, client: AnnotationClient, annotator: SimulatedAnnotator, ground_truth: Source, *, time_scale: float = 0.0
    ) -> None:
        self.client, self.annotator, self.ground_truth, self.time_scale = client, annotator, ground_truth, time_scale
        self._references = {reference.key: reference for reference in ground_truth.references}
        session = client.session()
        self.model: Mapping[str, Any] | None = session["model"]
        self.has_proposals: bool = session["has_proposals"]
        self.image_keys: list[str] = []
        """Keys of the annotated images, in order."""

    def annotate_images(self, max_images: int | None = None) -> Counts:
        """Annotate images until the queue is empty or `max_images` are done in all; return the cost of this call.

        Raises HttpError and ConnectionError as `AnnotationClient` does.
        """
        counts = Counts()
        while max_images is None or len(self.image_keys) < max_images:
            task = self.client.next_task()
            if task is None:
                break
            self.image_keys.append(task["image"])
            counts.add(self.annotate_task(task))
            counts.add({"images": 1})
        return counts

    def annotate_task(self, task: dict[str, Any]) -> Counts:
        """Review the proposed masks of a task, annotate the remaining objects, mark the task as done and return the cost."""
        image = self.ground_truth.load(self._references[task["image"]])
        if self.has_proposals:
            task = {**task, "masks": self.client.proposals(task["id"])}
        counts, existing, wrong = self._review_proposals(task, image)
        predictor = None
        if self.model is not None:
            self.client.wait_for_embedding(task["id"], self.model["checkpoint"])
            predictor = RemotePredictor(self.client, task, self.model)
        work = self.annotator.annotate(image, predictor, existing)
        for candidate in work.masks:
            corrected, annotated = _pop_overlapping(wrong, candidate), self._annotated_mask(candidate)
            if corrected:  # finding the object costs nothing: the wrong proposal shows where it is
                seconds = candidate.seconds - self.annotator.seconds_to_find
                counts.add({"seconds": seconds - candidate.seconds})
                annotated = replace(annotated, origin="edited", seconds=seconds, wall_seconds=seconds)
            time.sleep(self.time_scale * annotated.seconds)
            self.client.put_mask(task["id"], annotated, mask=corrected)
        for mask in wrong:
            self.client.delete_mask(task["id"], mask)
        self.client.mark_done(task["id"])
        counts.add(work.counts)
        counts.add({"masks": len(work.masks)})
        return counts

    def _review_proposals(
        self, task: dict[str, Any], image: SourceImage
    ) -> tuple[Counts, list[GeneratedMask], dict[str, GeneratedMask]]:
        """Accept the correct proposals; return the cost, the masks that stay, and the wrong proposals by id."""
        wrong: dict[str, GeneratedMask] = {}
        proposed = [mask for mask in task["masks"] if mask["origin"] == "proposed"]
        existing = [_candidate(mask) for mask in task["masks"] if mask["origin"] != "proposed"]
        verdicts, counts = self.annotator.review(image, [_candidate(mask) for mask in proposed])
        seconds = counts.get("seconds", 0) / max(1, len(proposed))
        for mask, verdict in zip(proposed, verdicts, strict=True):
            time.sleep(self.time_scale * seconds)
            if not verdict.kept:
                wrong[mask["mask"]] = _candidate(mask)
                continue
            accepted = AnnotatedMask(
                rle=mask["rle"], origin="accepted", predicted_iou=mask["predicted_iou"], seconds=seconds, wall_seconds=seconds
            )
            self.client.put_mask(task["id"], accepted, mask=mask["mask"])
            existing.append(_candidate(mask))
        return Counts(counts), existing, wrong

    def _annotated_mask(self, candidate: GeneratedMask) -> AnnotatedMask:
        return AnnotatedMask(
            rle=candidate.rle,
            origin=_ORIGINS[candidate.origin],
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
            prompts=[[x, y, float(label)] for x, y, label in candidate.prompt_points],
            clicks=len(candidate.prompt_points),
            strokes=int(candidate.origin is MaskOrigin.DRAWN),
            seconds=candidate.seconds,
            wall_seconds=candidate.seconds,
            checkpoint=self.model["checkpoint"] if self.model and candidate.prompt_points else "",
        )


def _pop_overlapping(wrong: dict[str, GeneratedMask], candidate: GeneratedMask) -> str | None:
    """Remove the wrong proposal that `candidate` corrects and return its id, None if there is none."""
    if not wrong:
        return None
    ious = coco_mask.iou([candidate.rle], [proposal.rle for proposal in wrong.values()], [0] * len(wrong))[0]
    best = list(wrong)[int(ious.argmax())]
    if ious.max() < SAME_OBJECT_IOU:
        return None
    del wrong[best]
    return best


def _candidate(mask: Mapping[str, Any]) -> GeneratedMask:
    return GeneratedMask.from_rle(
        mask["rle"],
        origin={"clicked": MaskOrigin.CLICKED, "drawn": MaskOrigin.DRAWN}.get(mask["origin"], MaskOrigin.GENERATED),
        predicted_iou=mask["predicted_iou"],
        stability_score=1.0,
        prompt_points=tuple((x, y, int(label)) for x, y, label in mask["prompts"]),
        seconds=mask["seconds"],
    )
