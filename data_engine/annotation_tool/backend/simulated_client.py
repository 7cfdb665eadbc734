"""A stage without people: the simulated annotator at the same API as the page."""

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
from data_engine.structures import Candidate, MaskOrigin, SourceImage

SAME_OBJECT_IOU = 0.5
"""A proposed mask that overlaps an object so much is corrected, and not thrown away for a new one."""
_ORIGINS = {MaskOrigin.CLICKED: "clicked", MaskOrigin.DRAWN: "drawn", MaskOrigin.GENERATED: "proposed"}


class SimulatedClient:
    """One simulated annotator. `ground_truth` is the source that the queue was filled from, with the masks that it looks for.

    time_scale: seconds of waiting for a second of work that the annotator's prices state; 0 does not wait.
    """

    def __init__(
        self, client: AnnotationClient, annotator: SimulatedAnnotator, ground_truth: Source, *, time_scale: float = 0.0
    ) -> None:
        self.client, self.annotator, self.ground_truth, self.time_scale = client, annotator, ground_truth, time_scale
        self._references = {reference.key: reference for reference in ground_truth.references}
        session = client.session()
        self.model: Mapping[str, Any] | None = session["model"]
        self.has_proposals: bool = session["proposes"]
        self.image_keys: list[str] = []
        """Keys of the images, in order."""

    def annotate_images(self, max_images: int | None = None) -> Counts:
        """Annotate until nothing is left; what it cost. Raises HttpError and ConnectionError as the client does."""
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
        """One task to its end."""
        image = self.ground_truth.load(self._references[task["image"]])
        if self.has_proposals:
            task = {**task, "masks": self.client.proposals(task["id"])}
        counts, standing, wrong = self._review(task, image)
        predictor = None
        if self.model is not None:
            self.client.wait_for_embedding(task["id"], self.model["checkpoint"])
            predictor = RemotePredictor(self.client, task, self.model)
        work = self.annotator.annotate(image, predictor, standing)
        for candidate in work.masks:
            before, made = _taken(wrong, candidate), self._work(candidate)
            if before:  # it need not be found: a wrong mask lies on it
                seconds = candidate.seconds - self.annotator.seconds_to_find
                counts.add({"seconds": seconds - candidate.seconds})
                made = replace(made, origin="edited", seconds=seconds, wall_seconds=seconds)
            time.sleep(self.time_scale * made.seconds)
            self.client.put_mask(task["id"], made, mask=before)
        for mask in wrong:
            self.client.delete_mask(task["id"], mask)
        self.client.mark_done(task["id"])
        counts.add(work.counts)
        counts.add({"masks": len(work.masks)})
        return counts

    def _review(self, task: dict[str, Any], image: SourceImage) -> tuple[Counts, list[Candidate], dict[str, Candidate]]:
        """Accept what is right of what is proposed; what stands then, and what is wrong, by id."""
        wrong: dict[str, Candidate] = {}
        proposed = [mask for mask in task["masks"] if mask["origin"] == "proposed"]
        standing = [_candidate(mask) for mask in task["masks"] if mask["origin"] != "proposed"]
        verdicts, counts = self.annotator.review(image, [_candidate(mask) for mask in proposed])
        each = counts.get("seconds", 0) / max(1, len(proposed))
        for mask, verdict in zip(proposed, verdicts, strict=True):
            time.sleep(self.time_scale * each)
            if not verdict.kept:
                wrong[mask["mask"]] = _candidate(mask)
                continue
            kept = AnnotatedMask(
                rle=mask["rle"], origin="accepted", predicted_iou=mask["predicted_iou"], seconds=each, wall_seconds=each
            )
            self.client.put_mask(task["id"], kept, mask=mask["mask"])
            standing.append(_candidate(mask))
        return Counts(counts), standing, wrong

    def _work(self, candidate: Candidate) -> AnnotatedMask:
        drawn = candidate.origin is MaskOrigin.DRAWN
        return AnnotatedMask(
            rle=candidate.rle,
            origin=_ORIGINS[candidate.origin],
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
            prompts=candidate.prompts,
            clicks=len(candidate.prompts),
            strokes=int(drawn),
            seconds=candidate.seconds,
            wall_seconds=candidate.seconds,
            checkpoint=self.model["checkpoint"] if self.model and candidate.prompts else "",
        )


def _taken(wrong: dict[str, Candidate], made: Candidate) -> str | None:
    """Take out of `wrong` the proposal that `made` corrects, if there is one: its id."""
    if not wrong:
        return None
    ious = coco_mask.iou([made.rle], [candidate.rle for candidate in wrong.values()], [0] * len(wrong))[0]
    best = list(wrong)[int(ious.argmax())]
    if ious.max() < SAME_OBJECT_IOU:
        return None
    del wrong[best]
    return best


def _candidate(mask: Mapping[str, Any]) -> Candidate:
    height, width = mask["rle"]["size"]
    return Candidate(
        rle=mask["rle"],
        origin={"clicked": MaskOrigin.CLICKED, "drawn": MaskOrigin.DRAWN}.get(mask["origin"], MaskOrigin.GENERATED),
        predicted_iou=mask["predicted_iou"],
        stability_score=1.0,
        crop_box=[0.0, 0.0, float(width), float(height)],
        point_coords=[],
        prompts=mask["prompts"],
        seconds=mask["seconds"],
    )
