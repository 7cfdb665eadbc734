"""The paper's interactive simulation: a first prompt, then corrections of what the model got wrong (section A).

It sees no more than a person does: the target (what the person wants), and the mask the model answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.prompts.rng import PromptRng, uniform
from sam_train.prompts.sampling import central_points, noisy_boxes, sample_uniform_points
from sam_train.structures import PointLabel, Prompts


class NextStep(Enum):
    """What follows a round."""

    ERROR_CLICK = auto()
    """A new point where the answer is wrong, and the answer fed back."""
    MASK_ONLY = auto()
    """Only the answer fed back: the paper's rounds without new information."""
    END = auto()


@dataclass(frozen=True, slots=True)
class PromptRound:
    """One round of prompting."""

    index: int
    next_step: NextStep

    @property
    def multimask_output(self) -> bool:
        """Whether the prompt is ambiguous: only the first, single prompt is."""
        return self.index == 0


class PromptSimulator:
    """First prompts and corrections for packed target masks.

    num_corrections: correction points after the first prompt (paper: 8; 3, so four points a mask, for the model that made SA-1B).
    num_empty_rounds: 2, 1 or 0 rounds without a new point: the last round, then one at a random place (paper: 2).
    box_probability: share of masks whose first prompt is a box (paper: 0.5).
    box_noise_std, box_noise_max: noise of a box corner as a share of the box side, and its largest value as a share
        of the frame. The paper's 20 px is taken to be in the 1024 frame.
    text_probability: share of the steps that begin with the words of their masks, where these have some (paper, D.5: all).
    click: "uniform" draws points uniformly from target and error region (training); "center" takes the pixel
        farthest from the boundary (the evaluation protocol, and a careful annotator).
    """

    def __init__(
        self,
        *,
        num_corrections: int = 8,
        num_empty_rounds: int = 2,
        box_probability: float = 0.5,
        box_noise_std: float = 0.1,
        box_noise_max: float = 20 / 1024,
        text_probability: float = 1.0,
        click: str = "uniform",
    ) -> None:
        if click not in ("uniform", "center"):
            raise ValueError(f"click must be 'uniform' or 'center', got {click!r}")
        if num_empty_rounds not in (0, 1, 2) or num_corrections < 0:
            raise ValueError(
                f"num_empty_rounds must be 0, 1 or 2, got {num_empty_rounds}; num_corrections {num_corrections} >= 0"
            )
        self.num_corrections, self.num_empty_rounds, self.click = num_corrections, num_empty_rounds, click
        self.box_probability, self.box_noise_std, self.box_noise_max = box_probability, box_noise_std, box_noise_max
        self.text_probability = text_probability

    def draw_rounds(self, generator: torch.Generator) -> list[PromptRound]:
        """The rounds of one step: first prompt, corrections, one empty round at a random place, one at the end."""
        then = [NextStep.ERROR_CLICK] * self.num_corrections
        if self.num_empty_rounds == 2:
            place = int(torch.randint(self.num_corrections + 1, (), generator=generator, device=generator.device))
            then.insert(place, NextStep.MASK_ONLY)
        if self.num_empty_rounds:
            then.append(NextStep.MASK_ONLY)
        return [PromptRound(index, next_) for index, next_ in enumerate([*then, NextStep.END])]

    def use_text_prompt(self, generator: torch.Generator) -> bool:
        """Whether a step begins with words. All its prompts do then, or none: they are equally long."""
        return bool(torch.rand((), generator=generator, device=generator.device) < self.text_probability)

    def first_prompts(self, targets: Bool[Tensor, "N H W"], image_index: Int[Tensor, " N"], generator: PromptRng) -> Prompts:
        """A foreground point in, or a noisy box around, each target. Targets must not be empty."""
        points = sample_uniform_points(targets, generator) if self.click == "uniform" else central_points(targets)[0]
        labels = torch.full((len(targets), 1), PointLabel.FOREGROUND, device=targets.device)
        clicks = Prompts.from_points(image_index, points[:, None], labels)
        if self.box_probability == 0:
            return clicks
        max_px = self.box_noise_max * max(targets.shape[1:])
        boxes = noisy_boxes(targets, std=self.box_noise_std, max_px=max_px, generator=generator)
        boxed = Prompts.from_boxes(image_index, boxes)
        use_box = uniform(generator, len(targets)) < self.box_probability
        use_box = use_box.to(targets.device)
        return Prompts(
            image_index=image_index,
            points_xy=torch.where(use_box[:, None, None], boxed.points_xy, clicks.points_xy),
            point_labels=torch.where(use_box[:, None], boxed.point_labels, clicks.point_labels),
        )

    def next_prompts(
        self,
        round_: PromptRound,
        prompts: Prompts,
        answers: Bool[Tensor, "N H W"],
        targets: Bool[Tensor, "N H W"],
        mask_logits: Float[Tensor, "N 1 h w"],
        generator: PromptRng,
    ) -> Prompts:
        """The prompts of the next round: the answer's logits fed back, and a click where the answer is wrong.

        A perfect answer has no wrong pixel; there the click confirms a pixel of the target, which tells the model
        nothing new but keeps the prompts equally long.
        """
        if round_.next_step is NextStep.END:
            return prompts
        if round_.next_step is NextStep.MASK_ONLY:
            return prompts.with_mask(mask_logits)
        if self.click == "uniform":
            points, labels = self._uniform_correction(answers, targets, generator)
        else:
            points, labels = self._central_correction(answers, targets)
        return prompts.with_point(points, labels, mask_logits)

    def _uniform_correction(
        self, answers: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"], generator: PromptRng
    ) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"]]:
        error = answers ^ targets
        perfect = ~error.flatten(1).any(1)
        points = sample_uniform_points(torch.where(perfect[:, None, None], targets, error), generator)
        x, y = points.long().unbind(1)
        missed = targets[torch.arange(len(targets), device=targets.device), y, x]
        return points, torch.where(missed, PointLabel.FOREGROUND, PointLabel.BACKGROUND)

    def _central_correction(
        self, answers: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"]
    ) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"]]:
        missed_xy, missed = central_points(targets & ~answers)
        false_xy, false = central_points(answers & ~targets)
        perfect = (missed == 0) & (false == 0)
        if bool(perfect.any()):
            missed_xy[perfect] = central_points(targets[perfect])[0]
        foreground = missed >= false
        points = torch.where(foreground[:, None], missed_xy, false_xy)
        return points, torch.where(foreground, PointLabel.FOREGROUND, PointLabel.BACKGROUND)
