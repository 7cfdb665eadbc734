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

from sam_train.inference import Predictor
from sam_train.masks import decode_rle, mask_iou
from sam_train.prompts import PromptSimulator
from sam_train.records import ImageRecord
from sam_train.shards import Sample, decode_jpeg


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickResult:
    """IoU of every mask after each click, and with the oracle's choice after the first."""

    ious: np.ndarray
    """num_masks x num_clicks."""
    oracle: np.ndarray
    """num_masks."""
    num_images: int

    def summary(self, clicks: Sequence[int] = (1, 3, 5)) -> dict[str, float]:
        """Means over masks under the names of metrics.json. NaN-free: zeros when there was no mask."""
        taken = [k for k in clicks if k <= self.ious.shape[1]]
        means = {f"miou_at_{k}": float(self.ious[:, k - 1].mean()) if len(self.ious) else 0.0 for k in taken}
        return means | {
            "oracle_at_1": float(self.oracle.mean()) if len(self.oracle) else 0.0,
            "num_masks": len(self.ious),
            "num_images": self.num_images,
        }


class ClickProtocol:
    """The protocol with its choices.

    num_clicks: clicks a mask gets.
    masks_per_image, min_area_px: at most so many masks of an image, drawn by `seed`, each of at least so many pixels.
    click: "center" (paper) or "uniform", the random variant.
    """

    def __init__(
        self, *, num_clicks: int = 5, masks_per_image: int = 64, min_area_px: int = 100, click: str = "center", seed: int = 0
    ) -> None:
        self.simulator = PromptSimulator(num_corrections=num_clicks - 1, num_empty_rounds=0, box_probability=0, click=click)
        self.masks_per_image, self.min_area_px, self.seed = masks_per_image, min_area_px, seed

    def run(self, predictor: Predictor, samples: Iterable[Sample]) -> ClickResult:
        """Evaluate every sample; images without a large enough mask only count as images."""
        ious, oracle, num_images = [], [], 0
        for sample in samples:
            num_images += 1
            targets = self._targets(sample.record, num_images)
            if not len(targets):
                continue
            predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key))
            by_click, best = self.click_ious(predictor, targets.to(predictor.device), num_images)
            ious.append(by_click.cpu().numpy())
            oracle.append(best.cpu().numpy())
        empty = np.zeros((0, self.simulator.num_corrections + 1))
        return ClickResult(
            ious=np.concatenate([empty, *ious]), oracle=np.concatenate([np.zeros(0), *oracle]), num_images=num_images
        )

    def click_ious(self, predictor: Predictor, targets: Bool[Tensor, "N H W"], seed: int) -> tuple[Tensor, Tensor]:
        """N x num_clicks IoUs and N oracle IoUs for targets of the image that the predictor holds."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        prompts = self.simulator.first(targets, torch.zeros(len(targets), dtype=torch.long, device=targets.device), generator)
        ious = []
        for round_ in self.simulator.rounds(generator):
            prediction = predictor.predict(prompts, multimask_output=round_.multimask_output)
            if round_.index == 0:
                oracle = mask_iou(predictor.masks_in_image(prediction.mask_logits), targets[:, None]).amax(1)
            best = prediction.best()
            answers = predictor.masks_in_image(best.mask_logits)[:, 0]
            ious.append(mask_iou(answers, targets))
            prompts = self.simulator.advance(round_, prompts, answers, targets, best.mask_logits, generator)
        return torch.stack(ious, 1), oracle

    def _targets(self, record: ImageRecord, seed: int) -> Bool[Tensor, "N H W"]:
        large = [mask for mask in record.masks if mask.area >= self.min_area_px]
        rng = np.random.default_rng([self.seed, seed])
        drawn = sorted(rng.permutation(len(large))[: self.masks_per_image])
        height, width = record.height, record.width
        masks = [decode_rle(large[i].segmentation, height=height, width=width, key=record.key) for i in drawn]
        return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, height, width, dtype=torch.bool)
