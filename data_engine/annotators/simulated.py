"""An annotator simulated from ground truth.

It has the information that a person has: the image, the object to annotate (one ground-truth mask at a time), and the model's
prediction. It clicks the centre of the largest error and repeats this until the prediction is good enough; after `max_clicks` it
draws the mask by hand. Its time is the sum of fixed costs, one per action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from data_engine.annotators.base import AnnotationResult
from data_engine.ledger import Counts
from data_engine.structures import ReviewVerdict, SourceImage
from sam_train.errors import ConfigError
from sam_train.inference import GeneratedMask, MaskOrigin, PredictorLike
from sam_train.inference.generator_types import Point
from sam_train.masks import mask_iou
from sam_train.prompts import PromptSimulator
from sam_train.rle import decode_rle, encode_rle
from sam_train.structures import PointLabel, Prompts


class SimulatedAnnotator:
    """Annotator that copies the masks in the record of the source image.

    accept_iou: a prediction with at least this IoU to the ground truth is accepted (people agree with each other at 0.85 to 0.91
        IoU, paper, section 5).
    max_clicks: clicks per object, after which the mask is drawn by hand.
    max_masks: objects annotated per image, largest (most prominent) first; the paper's annotators moved on when objects
        became hard.
    seconds_to_find, seconds_per_click, seconds_to_draw, seconds_to_review: cost in seconds of finding an object, of a click
        including the look at the result, of drawing a mask by hand, and of reviewing an existing mask. Drawing costs 34 s, the
        time per mask at the start of the paper's stage one.

    Raises ValueError for `max_clicks` below 1 or `accept_iou` outside (0, 1].
    """

    name = "simulated"

    def __init__(
        self,
        *,
        accept_iou: float = 0.85,
        max_clicks: int = 6,
        max_masks: int = 16,
        seconds_to_find: float = 2.0,
        seconds_per_click: float = 1.5,
        seconds_to_draw: float = 34.0,
        seconds_to_review: float = 1.0,
    ) -> None:
        if max_clicks < 1 or not 0 < accept_iou <= 1:
            raise ValueError(f"max_clicks {max_clicks} must be at least 1 and accept_iou {accept_iou} in (0, 1]")
        self.accept_iou, self.max_clicks, self.max_masks = accept_iou, max_clicks, max_masks
        self.seconds_to_find, self.seconds_per_click = seconds_to_find, seconds_per_click
        self.seconds_to_draw, self.seconds_to_review = seconds_to_draw, seconds_to_review
        self.simulator = PromptSimulator(
            num_corrections=max_clicks - 1, num_mask_only_rounds=0, box_probability=0, click="center"
        )

    def review(self, image: SourceImage, prefilled: Sequence[GeneratedMask]) -> tuple[list[ReviewVerdict], Counts]:
        """Keep a mask if its IoU with an object is at least `accept_iou`; of several masks of one object the first is kept."""
        objects = torch.from_numpy(self._objects(image))
        taken: set[int] = set()
        verdicts = []
        for candidate in prefilled:
            ious = mask_iou(torch.from_numpy(candidate.mask)[None], objects)
            best = int(ious.argmax()) if len(ious) else -1
            if best < 0 or ious[best] < self.accept_iou:
                verdicts.append(ReviewVerdict(kept=False, reason="no_object"))
            elif best in taken:
                verdicts.append(ReviewVerdict(kept=False, reason="duplicate"))
            else:
                taken.add(best)
                verdicts.append(ReviewVerdict(kept=True))
        by_hand = len(taken) * self._seconds_by_hand
        seconds = self.seconds_to_review * len(prefilled)
        return verdicts, Counts(masks_reviewed=len(prefilled), seconds=seconds, seconds_by_hand=by_hand)

    @property
    def _seconds_by_hand(self) -> float:
        """Seconds of finding an object and drawing its mask, without a model."""
        return self.seconds_to_find + self.seconds_to_draw

    def annotate(
        self, image: SourceImage, predictor: PredictorLike | None, existing: Sequence[GeneratedMask]
    ) -> AnnotationResult:
        """Click on each object until the prediction is accepted; draw it by hand after `max_clicks` clicks.

        predictor: the model, which already holds the image; None means that all masks are drawn by hand.
        """
        targets = self._uncovered_objects(image, existing)
        if predictor is None:
            masks = [self._drawn_mask(mask, ()) for mask in targets]
        else:
            masks = self._click_masks(torch.from_numpy(targets), predictor, image) if len(targets) else []
        counts = Counts(
            clicks=sum(len(m.prompt_points) for m in masks),
            masks_drawn=sum(m.origin is MaskOrigin.DRAWN for m in masks),
            masks_clicked=sum(m.origin is MaskOrigin.CLICKED for m in masks),
            seconds=sum(m.seconds for m in masks),
            seconds_by_hand=len(masks) * self._seconds_by_hand,
        )
        return AnnotationResult(masks=masks, counts=counts)

    def _click_masks(self, targets: Bool[Tensor, "N H W"], predictor: PredictorLike, image: SourceImage) -> list[GeneratedMask]:
        """Click on all objects of the image in one batch, on each until its prediction is accepted."""
        generator = torch.Generator().manual_seed(image.image_id % 2**63)
        targets = targets.to(predictor.device)
        pending = torch.arange(len(targets), device=targets.device)
        prompts = self.simulator.first_prompts(targets, torch.zeros_like(pending), generator)
        masks: dict[int, GeneratedMask] = {}
        for round_ in self.simulator.draw_rounds(generator):
            best = predictor.predict_prompts(prompts, multimask_output=round_.multimask_output).best()
            predictions = predictor.masks_to_image(best.mask_logits)[:, 0]
            accepted = mask_iou(predictions, targets[pending]) >= self.accept_iou
            for i in accepted.nonzero()[:, 0].tolist():
                stability_score = float(predictor.stability_scores(best.mask_logits[i : i + 1]))
                predicted_iou = float(best.iou_scores[i, 0])
                masks[int(pending[i])] = self._clicked_mask(predictions[i], prompts[i : i + 1], predicted_iou, stability_score)
            remaining = ~accepted
            pending, prompts = pending[remaining], prompts[remaining]
            if not len(pending):
                break
            logits = best.mask_logits[remaining]
            prompts = self.simulator.next_prompts(round_, prompts, predictions[remaining], targets[pending], logits, generator)
        for i, index in enumerate(pending.tolist()):
            masks[index] = self._drawn_mask(targets[index].cpu().numpy(), clicks_from_prompts(prompts[i : i + 1]))
        return [masks[i] for i in sorted(masks)]

    def _clicked_mask(self, prediction: Tensor, prompt: Prompts, predicted_iou: float, stability_score: float) -> GeneratedMask:
        clicks = clicks_from_prompts(prompt)
        return GeneratedMask.from_rle(
            encode_rle(prediction.cpu().numpy()),
            origin=MaskOrigin.CLICKED,
            predicted_iou=predicted_iou,
            stability_score=stability_score,
            prompt_points=clicks,
            seconds=self.seconds_to_find + self.seconds_per_click * len(clicks),
        )

    def _drawn_mask(self, mask: np.ndarray, clicks: tuple[Point, ...]) -> GeneratedMask:
        return GeneratedMask.from_rle(
            encode_rle(mask),
            origin=MaskOrigin.DRAWN,
            predicted_iou=1.0,  # no model estimated it, but SA-1B requires a number
            stability_score=1.0,
            prompt_points=clicks,
            seconds=self.seconds_to_find + self.seconds_per_click * len(clicks) + self.seconds_to_draw,
        )

    def _uncovered_objects(self, image: SourceImage, existing: Sequence[GeneratedMask]) -> np.ndarray:
        """Return the objects that no existing mask matches, largest first, as N x H x W bool."""
        objects = self._objects(image)
        if existing and len(objects):
            existing_masks = torch.from_numpy(np.stack([c.mask for c in existing]))
            covered = torch.stack([mask_iou(m, existing_masks).amax() for m in torch.from_numpy(objects)]) >= self.accept_iou
            objects = objects[~covered.numpy()]
        max_new = max(0, self.max_masks - len(existing))
        return objects[np.argsort(-objects.sum((1, 2)), kind="stable")[:max_new]]

    def _objects(self, image: SourceImage) -> np.ndarray:
        if image.record is None:
            message = f"{image.origin} has no ground truth: the simulated annotator needs a source of shards with masks"
            raise ConfigError(message)
        height, width = image.image.shape[:2]
        masks = [decode_rle(m.segmentation, height=height, width=width, key=image.key) for m in image.record.masks]
        return np.stack(masks) if masks else np.zeros((0, height, width), bool)


def clicks_from_prompts(prompts: Prompts) -> tuple[Point, ...]:
    """Return the clicks (x, y, label) of one prompt in order, without padding."""
    points = zip(prompts.points_xy[0].tolist(), prompts.point_labels[0].tolist(), strict=True)
    return tuple((x, y, label) for (x, y), label in points if label != PointLabel.PADDING)
