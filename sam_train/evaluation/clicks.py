"""Interactive segmentation after k clicks (paper, sections 7.1 and D.1).

First click: the pixel of the target farthest from its boundary. Next clicks: the pixel farthest from the boundary of
the false-negative or the false-positive region, whichever reaches farther. The previous logits are fed back. One click
takes the best of three masks by predicted IoU ("oracle": by true IoU), later clicks the single mask. IoU is taken in
the image frame and averaged over masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
)
from sam_train.inference import Predictor
from sam_train.masks import decode_rle, mask_iou
from sam_train.metrics.boundary_iou import boundary_iou
from sam_train.prompts import PromptSimulator
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards import Sample, decode_jpeg

CLICKS = {"center": ("center", "center"), "random_first": ("uniform", "center"), "uniform": ("uniform", "uniform")}
"""How the first and how the next clicks are placed: the paper's, its "more challenging" variant, and chance throughout."""

MASKS_AT_ONCE = 64
"""Of an image with more masks, so many are at its size at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickResult:
    """IoU of every mask after each click, and with the oracle's choice after the first."""

    ious: np.ndarray
    """num_masks x num_clicks."""
    oracle: np.ndarray
    """num_masks."""
    num_images: int
    boundary_ious: np.ndarray | None = None
    """num_masks x num_clicks, where they were asked for."""

    @staticmethod
    def of(measurements: Iterable[Measurement], num_clicks: int) -> ClickResult:
        """All images' measurements as one."""
        measured = list(measurements)
        tables = {
            name: np.array([row for m in measured for row in m.get(name, ())], float).reshape(-1, num_clicks)
            for name in ("ious", "boundary_ious")
        }
        return ClickResult(
            ious=tables["ious"],
            oracle=np.array([iou for m in measured for iou in m["oracle"]], float),
            num_images=len(measured),
            boundary_ious=tables["boundary_ious"] if any("boundary_ious" in m for m in measured) else None,
        )

    def summary(self, clicks: Sequence[int] = (1, 3, 5)) -> dict[str, float]:
        """Means over masks under the names of metrics.json. NaN-free: zeros when there was no mask."""
        means: dict[str, float] = {}
        for name, ious in (("miou", self.ious), ("boundary_iou", self.boundary_ious)):
            if ious is not None:
                taken = [k for k in clicks if k <= ious.shape[1]]
                means |= {f"{name}_at_{k}": float(ious[:, k - 1].mean()) if len(ious) else 0.0 for k in taken}
        return means | {
            "oracle_at_1": float(self.oracle.mean()) if len(self.oracle) else 0.0,
            "num_masks": len(self.ious),
            "num_images": self.num_images,
        }


class ClickProtocol(EvaluationProtocol):
    """The protocol with its choices.

    num_clicks: clicks a mask gets; report: after which of them the means are told.
    masks_per_image, min_area_px: at most so many masks of an image, drawn by `seed`, each of at least so many pixels.
    click: "center" (paper); "random_first", its variant whose first click is any pixel of the target; "uniform", any pixel of
        the target and then of the error.
    boundary: measure boundary IoU too.
    """

    def __init__(
        self,
        *,
        num_clicks: int = 5,
        masks_per_image: int = 64,
        min_area_px: int = 100,
        click: str = "center",
        report: Sequence[int] = (1, 3, 5),
        boundary: bool = False,
        seed: int = 0,
    ) -> None:
        if click not in CLICKS:
            raise ConfigError(f"click must be one of {', '.join(CLICKS)}, got {click!r}")
        first, later = CLICKS[click]
        self.first = PromptSimulator(box_probability=0, click=first)
        self.simulator = PromptSimulator(num_corrections=num_clicks - 1, num_mask_only_rounds=0, box_probability=0, click=later)
        self.masks_per_image, self.min_area_px, self.seed = masks_per_image, min_area_px, seed
        self.num_clicks, self.report, self.boundary = num_clicks, tuple(report), boundary

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        return list_shard_images(shards)

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        return self.measure_sample(predictor, load_sample(image_entry), image_entry.number)

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        result = ClickResult.of(measurements, self.num_clicks)
        if not len(result.ious):
            raise ConfigError(
                f"the shards have no mask to measure by in {result.num_images} images: name others, or lower protocol.min_area_px"
            )
        return Summary(measures=result.summary(self.report))

    def run(self, predictor: Predictor, samples: Iterable[Sample]) -> ClickResult:
        """Evaluate every sample; images without a large enough mask only count as images."""
        measured = [self.measure_sample(predictor, sample, number) for number, sample in enumerate(samples, start=1)]
        return ClickResult.of(measured, self.num_clicks)

    def measure_sample(self, predictor: Predictor, sample: Sample, number: int) -> Measurement:
        """IoUs of the masks of one image, whose `number` seeds what is drawn."""
        measured: Measurement = {"ious": [], "oracle": []} | ({"boundary_ious": []} if self.boundary else {})
        masks = self._drawn(sample.record, number)
        if masks:
            predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key))
        for start in range(0, len(masks), MASKS_AT_ONCE):
            targets = _decoded(sample.record, masks[start : start + MASKS_AT_ONCE]).to(predictor.device)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number + start * 1_000_000_007)
            for name, table in self._clicked(predictor, targets, generator).items():
                measured[name] += table.tolist()
        return measured

    def _clicked(self, predictor: Predictor, targets: Bool[Tensor, "N H W"], generator: torch.Generator) -> dict[str, Tensor]:
        """N x num_clicks (boundary) IoUs and N oracle IoUs for targets of the image that the predictor holds."""
        prompts = self.first.first_prompts(targets, torch.zeros(len(targets), dtype=torch.long, device=targets.device), generator)
        ious, outlines = [], []
        for round_ in self.simulator.draw_rounds(generator):
            prediction = predictor.predict(prompts, multimask_output=round_.multimask_output)
            if round_.index == 0:
                oracle = mask_iou(predictor.masks_to_image(prediction.mask_logits), targets[:, None]).amax(1)
            best = prediction.best()
            answers = predictor.masks_to_image(best.mask_logits)[:, 0]
            ious.append(mask_iou(answers, targets))
            if self.boundary:
                outlines.append(torch.tensor(_boundary_ious(answers, targets)))
            prompts = self.simulator.next_prompts(round_, prompts, answers, targets, best.mask_logits, generator)
        found = {"ious": torch.stack(ious, 1), "oracle": oracle}
        return found | ({"boundary_ious": torch.stack(outlines, 1)} if outlines else {})

    def _drawn(self, record: ImageRecord, seed: int) -> list[MaskRecord]:
        large = [mask for mask in record.masks if mask.area >= self.min_area_px]
        rng = np.random.default_rng([self.seed, seed])
        return [large[i] for i in sorted(rng.permutation(len(large))[: self.masks_per_image])]


def _decoded(record: ImageRecord, masks: Sequence[MaskRecord]) -> Bool[Tensor, "N H W"]:
    height, width = record.height, record.width
    return torch.from_numpy(np.stack([decode_rle(m.segmentation, height=height, width=width, key=record.key) for m in masks]))


def _boundary_ious(answers: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"]) -> list[float]:
    pairs = zip(answers.cpu().numpy(), targets.cpu().numpy(), strict=True)
    return [boundary_iou(answer, target) for answer, target in pairs]
