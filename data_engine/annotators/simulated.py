"""Ground truth plays the person.

It sees what a person sees: the picture, what it wants (one truth mask at a time), and the model's answer. It clicks the
middle of what is wrong, looks, clicks again, and stops at an answer that it accepts; when its patience ends it takes the
brush. Its time is counted by a stated price for each action.
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
from sam_train.masks import decode_rle, encode_rle, mask_iou, stability_score
from sam_train.prompts import PromptSimulator
from sam_train.structures import PointLabel, Prediction, Prompts


class SimulatedAnnotator:
    """An annotator whose knowledge is the record of the source image.

    accept_iou: an answer at least this good is accepted (people among themselves agree at 0.85 to 0.91 IoU, paper,
        section 5).
    max_clicks: clicks after which it takes the brush.
    max_masks: objects annotated in an image, most prominent (largest) first; the paper's annotators moved on when
        objects became hard.
    seconds_to_find, seconds_per_click, seconds_to_draw, seconds_to_review: price of finding an object, of a click
        with a look at the answer, of drawing a mask with the brush, and of judging a mask that is there. Drawing costs
        what the paper's stage one cost at its start, 34 s.
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
        self.simulator = PromptSimulator(num_corrections=max_clicks - 1, num_empty_rounds=0, box_probability=0, click="center")

    def review(self, image: SourceImage, prefilled: Sequence[GeneratedMask]) -> tuple[list[ReviewVerdict], Counts]:
        """Keep what is close enough to an object, one mask an object; the best comes first and wins."""
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
        return verdicts, Counts(masks_reviewed=len(prefilled), seconds=self.seconds_to_review * len(prefilled))

    def annotate(
        self, image: SourceImage, predictor: PredictorLike | None, existing: Sequence[GeneratedMask]
    ) -> AnnotationResult:
        """Click, look, click again; draw what clicking does not bring. `predictor` already holds the image."""
        wanted = self._wanted(image, existing)
        if predictor is None:
            masks = [self._drawn(mask, ()) for mask in wanted]
        else:
            masks = self._clicked(torch.from_numpy(wanted), predictor, image) if len(wanted) else []
        counts = Counts(
            clicks=sum(len(m.prompt_points) for m in masks),
            masks_drawn=sum(m.origin is MaskOrigin.DRAWN for m in masks),
            masks_clicked=sum(m.origin is MaskOrigin.CLICKED for m in masks),
            seconds=sum(m.seconds for m in masks),
        )
        return AnnotationResult(masks=masks, counts=counts)

    def _clicked(self, wanted: Bool[Tensor, "N H W"], predictor: PredictorLike, image: SourceImage) -> list[GeneratedMask]:
        """All objects of the image at once, each until its answer is accepted."""
        generator = torch.Generator().manual_seed(image.image_id % 2**63)
        wanted = wanted.to(predictor.device)
        open_ = torch.arange(len(wanted), device=wanted.device)
        prompts = self.simulator.first_prompts(wanted, torch.zeros_like(open_), generator)
        masks: dict[int, GeneratedMask] = {}
        for round_ in self.simulator.draw_rounds(generator):
            best = predictor.predict(prompts, multimask_output=round_.multimask_output).best()
            answers = predictor.masks_to_image(best.mask_logits)[:, 0]
            accepted = mask_iou(answers, wanted[open_]) >= self.accept_iou
            for i in accepted.nonzero()[:, 0].tolist():
                masks[int(open_[i])] = self._accepted(answers[i], prompts[i : i + 1], best, i)
            left = ~accepted
            open_, prompts = open_[left], prompts[left]
            if not len(open_):
                break
            logits = best.mask_logits[left]
            prompts = self.simulator.next_prompts(round_, prompts, answers[left], wanted[open_], logits, generator)
        for i, index in enumerate(open_.tolist()):
            masks[index] = self._drawn(wanted[index].cpu().numpy(), clicks_from_prompts(prompts[i : i + 1]))
        return [masks[i] for i in sorted(masks)]

    def _accepted(self, answer: Tensor, prompt: Prompts, best: Prediction, i: int) -> GeneratedMask:
        clicks = clicks_from_prompts(prompt)
        return GeneratedMask.from_rle(
            encode_rle(answer.cpu().numpy()),
            origin=MaskOrigin.CLICKED,
            predicted_iou=float(best.iou_scores[i, 0]),
            stability_score=float(stability_score(best.mask_logits[i, 0])),
            prompt_points=clicks,
            seconds=self.seconds_to_find + self.seconds_per_click * len(clicks),
        )

    def _drawn(self, mask: np.ndarray, clicks: tuple[Point, ...]) -> GeneratedMask:
        return GeneratedMask.from_rle(
            encode_rle(mask),
            origin=MaskOrigin.DRAWN,
            predicted_iou=1.0,  # SA-1B's keys want a number
            stability_score=1.0,
            prompt_points=clicks,
            seconds=self.seconds_to_find + self.seconds_per_click * len(clicks) + self.seconds_to_draw,
        )

    def _wanted(self, image: SourceImage, existing: Sequence[GeneratedMask]) -> np.ndarray:
        """Objects that no existing mask covers, largest first, N x H x W bool."""
        objects = self._objects(image)
        if existing and len(objects):
            there = torch.from_numpy(np.stack([c.mask for c in existing]))
            covered = torch.stack([mask_iou(m, there).amax() for m in torch.from_numpy(objects)]) >= self.accept_iou
            objects = objects[~covered.numpy()]
        room = max(0, self.max_masks - len(existing))
        return objects[np.argsort(-objects.sum((1, 2)), kind="stable")[:room]]

    def _objects(self, image: SourceImage) -> np.ndarray:
        if image.record is None:
            message = f"{image.origin} has no ground truth: the simulated annotator needs shards with masks as source"
            raise ConfigError(message)
        height, width = image.image.shape[:2]
        masks = [decode_rle(m.segmentation, height=height, width=width, key=image.key) for m in image.record.masks]
        return np.stack(masks) if masks else np.zeros((0, height, width), bool)


def clicks_from_prompts(prompts: Prompts) -> tuple[Point, ...]:
    """[x, y, label] of the one prompt's clicks, in order, padding left out."""
    points = zip(prompts.points_xy[0].tolist(), prompts.point_labels[0].tolist(), strict=True)
    return tuple((x, y, label) for (x, y), label in points if label != PointLabel.PADDING)
