"""Validation by simulated interactive segmentation: mIoU after 1, 3 and 5 clicks, and from text prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.inference import EmbeddingCache, Predictor
from sam_train.masks import mask_iou
from sam_train.metrics import ClickIoU
from sam_train.model import Sam
from sam_train.prompts import NextStep, PromptRound, PromptSimulator
from sam_train.shards import Sample
from sam_train.structures import Batch, Prediction, Prompts

TEXT_THEN_CLICK = (PromptRound(0, NextStep.ERROR_CLICK), PromptRound(1, NextStep.END))
"""Rounds of the validation of text prompts: one prediction from the text, one more after a click."""


@runtime_checkable  # the type checks of the tests need it
class ClickMeasure(Protocol):
    """The protocol by which clicks are measured: that of `sam-evaluate` (`evaluation.ClickProtocol`)."""

    num_clicks: int
    report: tuple[int, ...]

    def measure_sample(self, predictor: Predictor, sample: Sample, number: int) -> dict[str, Any]:
        """Return "ious", one row per mask and one column per click; `number` seeds the random choices."""
        ...


class ClickValidation(nn.Module):
    """Validation metrics of a `Sam`: IoU after each click and, if the masks have text embeddings, from text prompts.

    protocol: measures the clicks at the resolution of the image, exactly as `sam-evaluate` does. None measures no clicks.
    Text prompts are measured in the model frame.
    """

    def __init__(self, protocol: ClickMeasure | None = None) -> None:
        super().__init__()
        self.protocol, self.simulator = protocol, validation_simulator()
        self.iou_from_clicks = ClickIoU(protocol.num_clicks if protocol else 1)
        self.iou_from_text = ClickIoU(len(TEXT_THEN_CLICK))

    def update(
        self,
        model: Sam,
        batch: Batch,
        encode: Callable[[Batch], Float[Tensor, "B E h w"]],
        cache: EmbeddingCache | None = None,
    ) -> None:
        """Add the IoUs of a batch.

        encode: returns its image embeddings, for text prompts. cache: stores the embeddings of a frozen image encoder.
        """
        device = batch.images.device
        if self.protocol:
            predictor = Predictor(model, cache)
            with torch.autocast(device.type, enabled=False):  # in the precision of sam-evaluate
                measured = [self.protocol.measure_sample(predictor, sample, number) for number, sample in batch.sources]
            ious = torch.tensor([row for measurement in measured for row in measurement["ious"]], device=device)
            self.iou_from_clicks.update(ious.reshape(-1, self.protocol.num_clicks))
        if batch.text_embeddings is not None:
            text_prompts = Prompts.from_text(batch.image_index, batch.text_embeddings)
            generator = torch.Generator().manual_seed(0)
            self.iou_from_text.update(self._ious(model, batch, encode(batch), text_prompts, TEXT_THEN_CLICK, generator))

    def log_and_reset(self, module: LightningModule, *, has_text_prompts: bool) -> None:
        """Log mIoU after the protocol's numbers of clicks and, with text prompts, from text and after one more click; reset."""
        if self.protocol:
            means = self.iou_from_clicks.compute()
            self.iou_from_clicks.reset()
            for clicks in self.protocol.report:
                if clicks <= len(means):
                    module.log(f"val/miou_at_{clicks}", means[clicks - 1], sync_dist=True)
        if has_text_prompts:
            from_text, after_click = self.iou_from_text.compute()
            self.iou_from_text.reset()
            module.log("val/miou_from_text", from_text, sync_dist=True)
            module.log("val/miou_from_text_and_click", after_click, sync_dist=True)

    def _ious(
        self,
        model: Sam,
        batch: Batch,
        embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        rounds: Sequence[PromptRound],
        generator: torch.Generator,
    ) -> Float[Tensor, "N K"]:
        """Return the IoUs of the predictions in each of K rounds that begin with `prompts`."""
        ious = []
        for round_ in rounds:
            best = model.decode(embeddings, prompts, multimask_output=round_.multimask_output).best()
            masks = predicted_masks(best, model.image_size)
            ious.append(mask_iou(masks, batch.target_masks))
            prompts = self.simulator.next_prompts(round_, prompts, masks, batch.target_masks, best.mask_logits, generator)
        return torch.stack(ious, 1)


def validation_simulator() -> PromptSimulator:
    """Return the simulator of clicks at centres, without boxes and rounds without a new prompt."""
    return PromptSimulator(num_corrections=4, num_mask_only_rounds=0, box_probability=0, click="center")


def predicted_masks(best: Prediction, image_size: int) -> Bool[Tensor, "N H W"]:
    """Return the masks of predictions with one mask each, in the model frame."""
    return upsample_mask_logits(best.mask_logits, image_size)[:, 0] > 0


def upsample_mask_logits(mask_logits: Float[Tensor, "N M h w"], image_size: int) -> Float[Tensor, "N M H W"]:
    """Upsample mask logits from the decoder's resolution to the model frame (bilinear)."""
    return F.interpolate(mask_logits, (image_size, image_size), mode="bilinear", align_corners=False)
