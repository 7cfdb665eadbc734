"""Interactive segmentation after k clicks (paper, sections 7.1 and D.1).

The first click is the pixel of the target farthest from its boundary. Each later click is the pixel farthest from the boundary
of the false-negative or the false-positive region, whichever distance is larger. The previous logits are fed back as mask prompt.
After one click the prediction is the best of three masks by predicted IoU ("oracle": by true IoU), after later clicks the single
mask. IoU is measured in the image frame and averaged over masks.
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
from sam_train.masks import mask_iou
from sam_train.metrics.boundary_iou import boundary_iou
from sam_train.prompts import PromptSimulator
from sam_train.records import ImageRecord, MaskRecord
from sam_train.rle import decode_rle
from sam_train.shards import Sample, decode_jpeg

CLICKS = {"center": ("center", "center"), "random_first": ("uniform", "center"), "uniform": ("uniform", "uniform")}
"""Placement of the first and of the later clicks: the paper's, its "more challenging" variant, and random throughout."""

MASKS_PER_CHUNK = 64
"""Masks of an image that are predicted together, which limits the memory of masks at its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickResult:
    """IoU of every mask after each click, and of the oracle's choice after the first."""

    ious: np.ndarray
    """IoU, num_masks x num_clicks."""
    oracle: np.ndarray
    """Highest IoU of the three masks after the first click, num_masks."""
    num_images: int
    boundary_ious: np.ndarray | None = None
    """Boundary IoU, num_masks x num_clicks; None if it was not measured."""

    @staticmethod
    def from_measurements(measurements: Iterable[Measurement], num_clicks: int) -> ClickResult:
        """Join the measurements of all images."""
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

    def means(self, clicks: Sequence[int] = (1, 3, 5)) -> dict[str, float]:
        """Return means over masks after some of the clicks, by the names that metrics.json has; 0, not NaN, without masks."""
        means: dict[str, float] = {}
        for name, ious in (("miou", self.ious), ("boundary_iou", self.boundary_ious)):
            if ious is not None:
                reported = [k for k in clicks if k <= ious.shape[1]]
                means |= {f"{name}_at_{k}": float(ious[:, k - 1].mean()) if len(ious) else 0.0 for k in reported}
        return means | {
            "oracle_at_1": float(self.oracle.mean()) if len(self.oracle) else 0.0,
            "num_masks": len(self.ious),
            "num_images": self.num_images,
        }


class ClickProtocol(EvaluationProtocol):
    """IoU after k simulated clicks per mask.

    num_clicks: clicks per mask. report: numbers of clicks after which the mean IoU is reported.
    masks_per_image: largest number of masks of an image, drawn at random by `seed`. min_area_px: smaller masks are skipped.
    click: "center" (paper); "random_first", its variant with a random first click on the target; "uniform", random clicks on the
        target and then on the error.
    boundary: also measure boundary IoU.

    Raises ConfigError for another `click`.
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
        result = ClickResult.from_measurements(measurements, self.num_clicks)
        if not len(result.ious):
            raise ConfigError(
                f"no mask to evaluate in {result.num_images} images: name other shards, or lower protocol.min_area_px"
            )
        return Summary(measures=result.means(self.report))

    def run(self, predictor: Predictor, samples: Iterable[Sample]) -> ClickResult:
        """Evaluate samples in order; an image without a mask of at least `min_area_px` pixels counts as an image only."""
        measured = [self.measure_sample(predictor, sample, number) for number, sample in enumerate(samples, start=1)]
        return ClickResult.from_measurements(measured, self.num_clicks)

    def measure_sample(self, predictor: Predictor, sample: Sample, number: int) -> Measurement:
        """Measure the IoUs of the masks of one image; `number` seeds the random choices."""
        measured: Measurement = {"ious": [], "oracle": []} | ({"boundary_ious": []} if self.boundary else {})
        masks = self._sample_masks(sample.record, number)
        if masks:
            predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key))
        for start in range(0, len(masks), MASKS_PER_CHUNK):
            targets = _decode_masks(sample.record, masks[start : start + MASKS_PER_CHUNK]).to(predictor.device)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number + start * 1_000_000_007)
            for name, table in self._simulate_clicks(predictor, targets, generator).items():
                measured[name] += table.tolist()
        return measured

    def _simulate_clicks(
        self, predictor: Predictor, targets: Bool[Tensor, "N H W"], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return IoUs and boundary IoUs (N x num_clicks) and oracle IoUs (N) for targets of the predictor's image."""
        prompts = self.first.first_prompts(targets, torch.zeros(len(targets), dtype=torch.long, device=targets.device), generator)
        ious, boundary_ious_by_click = [], []
        for round_ in self.simulator.draw_rounds(generator):
            prediction = predictor.predict_prompts(prompts, multimask_output=round_.multimask_output)
            if round_.index == 0:
                oracle = mask_iou(predictor.masks_to_image(prediction.mask_logits), targets[:, None]).amax(1)
            best = prediction.best()
            masks = predictor.masks_to_image(best.mask_logits)[:, 0]
            ious.append(mask_iou(masks, targets))
            if self.boundary:
                boundary_ious_by_click.append(torch.tensor(_boundary_ious(masks, targets)))
            prompts = self.simulator.next_prompts(round_, prompts, masks, targets, best.mask_logits, generator)
        tables = {"ious": torch.stack(ious, 1), "oracle": oracle}
        return tables | ({"boundary_ious": torch.stack(boundary_ious_by_click, 1)} if boundary_ious_by_click else {})

    def _sample_masks(self, record: ImageRecord, seed: int) -> list[MaskRecord]:
        large = [mask for mask in record.masks if mask.area >= self.min_area_px]
        rng = np.random.default_rng([self.seed, seed])
        return [large[i] for i in sorted(rng.permutation(len(large))[: self.masks_per_image])]


def _decode_masks(record: ImageRecord, masks: Sequence[MaskRecord]) -> Bool[Tensor, "N H W"]:
    height, width = record.height, record.width
    return torch.from_numpy(np.stack([decode_rle(m.segmentation, height=height, width=width, key=record.key) for m in masks]))


def _boundary_ious(masks: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"]) -> list[float]:
    pairs = zip(masks.cpu().numpy(), targets.cpu().numpy(), strict=True)
    return [boundary_iou(mask, target) for mask, target in pairs]
