"""The paper's interactive prompt simulation: a first prompt, then correction clicks in the error region (section A).

The simulator reads only what an annotator sees: the target mask, and the mask that the model predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.prompts.error_region_clicks import central_error_region_clicks, sample_error_region_clicks
from sam_train.prompts.rng import PromptRng, uniform
from sam_train.prompts.sampling import central_points, noisy_boxes, sample_uniform_points
from sam_train.structures import PointLabel, Prompts


class NextStep(Enum):
    """The change to the prompts between one round and the next."""

    ERROR_CLICK = auto()
    """Add a click in the error region, and the predicted mask as mask prompt."""
    MASK_ONLY = auto()
    """Add the predicted mask as mask prompt and no point: the paper's iterations without new information."""
    END = auto()
    """Stop: this is the last round."""


@dataclass(frozen=True, slots=True)
class PromptRound:
    """One round of prompting."""

    index: int
    """Number of the round, from 0."""
    next_step: NextStep
    """Change to the prompts after this round."""

    @property
    def multimask_output(self) -> bool:
        """True if the decoder predicts several masks: only in the first round, whose single prompt is ambiguous."""
        return self.index == 0


class PromptSimulator:
    """Simulates first prompts and corrections for packed target masks.

    num_corrections: correction clicks after the first prompt (paper: 8; 3, so four points a mask, for the model that made SA-1B).
    num_mask_only_rounds: number of rounds without a new point: 1 adds one at the end, 2 another one at a random index (paper: 2).
    box_probability: share of masks whose first prompt is a box (paper: 0.5).
    box_noise_std, box_noise_max: standard deviation of the noise of a box corner, as a share of the box side, and the largest
        noise, as a share of the longer side of the frame. The paper's 20 px are taken to be in the 1024 frame.
    text_probability: share of the training steps whose first prompt is a text prompt, if the masks have one (paper, D.5: all).
    click: "uniform" draws points uniformly from the target and the error region (training); "center" takes the pixel
        farthest from the boundary (the evaluation protocol, and a careful annotator); "mixed" takes either with equal
        probability, for each click of each mask.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        *,
        num_corrections: int = 8,
        num_mask_only_rounds: int = 2,
        box_probability: float = 0.5,
        box_noise_std: float = 0.1,
        box_noise_max: float = 20 / 1024,
        text_probability: float = 1.0,
        click: str = "uniform",
    ) -> None:
        if click not in ("uniform", "center", "mixed"):
            raise ValueError(f"click must be 'uniform', 'center' or 'mixed', got {click!r}")
        if num_mask_only_rounds not in (0, 1, 2):
            raise ValueError(f"num_mask_only_rounds must be 0, 1 or 2, got {num_mask_only_rounds}")
        if num_corrections < 0:
            raise ValueError(f"num_corrections must be at least 0, got {num_corrections}")
        self.num_corrections, self.num_mask_only_rounds, self.click = num_corrections, num_mask_only_rounds, click
        self.box_probability, self.box_noise_std, self.box_noise_max = box_probability, box_noise_std, box_noise_max
        self.text_probability = text_probability

    def draw_rounds(self, generator: torch.Generator) -> list[PromptRound]:
        """Return the rounds of one training step: the first prompt, the corrections, and the mask-only rounds among them."""
        next_steps = [NextStep.ERROR_CLICK] * self.num_corrections
        if self.num_mask_only_rounds == 2:
            index = int(torch.randint(self.num_corrections + 1, (), generator=generator, device=generator.device))
            next_steps.insert(index, NextStep.MASK_ONLY)
        if self.num_mask_only_rounds:
            next_steps.append(NextStep.MASK_ONLY)
        return [PromptRound(index, next_step) for index, next_step in enumerate([*next_steps, NextStep.END])]

    def use_text_prompt(self, generator: torch.Generator) -> bool:
        """Draw whether a training step begins with text prompts: all of its prompts or none, so that they are equally long."""
        return bool(torch.rand((), generator=generator, device=generator.device) < self.text_probability)

    def first_prompts(self, targets: Bool[Tensor, "N H W"], image_index: Int[Tensor, " N"], rng: PromptRng) -> Prompts:
        """Return a foreground point in, or a noisy box around, each target.

        Raises ValueError if points are drawn and a target is empty.
        """
        points = self._choose(rng, lambda: (sample_uniform_points(targets, rng),), lambda: (central_points(targets)[0],))[0]
        labels = torch.full((len(targets), 1), PointLabel.FOREGROUND, device=targets.device)
        point_prompts = Prompts.from_points(image_index, points[:, None], labels)
        if self.box_probability == 0:
            return point_prompts
        max_px = self.box_noise_max * max(targets.shape[1:])
        boxes = noisy_boxes(targets, std=self.box_noise_std, max_px=max_px, rng=rng)
        box_prompts = Prompts.from_boxes(image_index, boxes)
        use_box = uniform(rng, len(targets)) < self.box_probability
        use_box = use_box.to(targets.device)
        return Prompts(
            image_index=image_index,
            points_xy=torch.where(use_box[:, None, None], box_prompts.points_xy, point_prompts.points_xy),
            point_labels=torch.where(use_box[:, None], box_prompts.point_labels, point_prompts.point_labels),
        )

    def next_prompts(
        self,
        round_: PromptRound,
        prompts: Prompts,
        predictions: Bool[Tensor, "N H W"],
        targets: Bool[Tensor, "N H W"],
        mask_logits: Float[Tensor, "N 1 h w"],
        rng: PromptRng,
    ) -> Prompts:
        """Return the prompts of the round after `round_`: with a click in the error region, and the last logits as mask prompt.

        predictions, mask_logits: the masks predicted in `round_`, in the frame of the targets, and their low-resolution logits.
        """
        if round_.next_step is NextStep.END:
            return prompts
        if round_.next_step is NextStep.MASK_ONLY:
            return prompts.with_mask(mask_logits)
        points, labels = self._choose(
            rng,
            lambda: sample_error_region_clicks(predictions, targets, rng),
            lambda: central_error_region_clicks(predictions, targets),
        )
        return prompts.with_point(points, labels, mask_logits)

    def _choose(
        self, rng: PromptRng, uniform_clicks: Callable[[], tuple[Tensor, ...]], central_clicks: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return the clicks of one kind, or those of either kind for each mask."""
        if self.click != "mixed":
            return uniform_clicks() if self.click == "uniform" else central_clicks()
        drawn, central = uniform_clicks(), central_clicks()
        is_central = (uniform(rng, len(drawn[0])) < 0.5).to(drawn[0].device)
        return tuple(
            torch.where(is_central.view(-1, *[1] * (c.ndim - 1)), c.to(d.dtype), d) for d, c in zip(drawn, central, strict=True)
        )
