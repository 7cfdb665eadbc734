"""The step: prompt, decode, loss, correct, repeat (paper, section A)."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from sam_train.losses import LossTerms, SamLoss
from sam_train.masks import mask_iou
from sam_train.metrics import ClickIoU
from sam_train.model import Sam
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.structures import Batch, Prediction
from sam_train.training.frozen_encoder import FrozenEncoder

VALIDATION_CLICKS = (1, 3, 5)


class SamModule(LightningModule):
    """Trains a `Sam` with simulated interactive prompts.

    The rounds are backpropagated one by one into the detached image embeddings, and the encoder once at the end: eleven
    rounds cost the memory of one. Fed-back logits carry no gradient (the paper does not say; SAM 2's code lets it flow).

    loss_resolution: "grid" compares at the decoder's resolution, a cell being target when more than half of it is, so
        that what is thinner than half a cell is lost; "full" upsamples the logits to the model frame, as SAM 2's code
        does, at four to sixteen times the cost.
    compile_encoder: the image encoder through torch.compile. Half a minute first; on the one CPU it was tried on it
        gained nothing to a tenth, on a GPU it was not tried.
    frozen_encoder: where the image embeddings come from when the image encoder is not trained; None trains it.
    gradient_clip: largest gradient norm; none in SAM 1, 0.1 in SAM 2. None switches it off.
    seed: prompts and dropped paths are drawn from (seed, step, rank), so a resumed step draws what the unbroken run drew.
    """

    def __init__(
        self,
        model: Sam,
        simulator: PromptSimulator,
        loss: SamLoss,
        optimizer: OptimizerFactory,
        *,
        frozen_encoder: FrozenEncoder | None = None,
        loss_resolution: str = "grid",
        gradient_clip: float | None = None,
        compile_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if loss_resolution not in ("grid", "full"):
            raise ValueError(f"loss_resolution must be 'grid' or 'full', got {loss_resolution!r}")
        self.automatic_optimization = False  # several backward passes a step
        self.model, self.simulator, self.loss, self.optimizer_factory = model, simulator, loss, optimizer
        self.loss_resolution, self.gradient_clip, self.seed = loss_resolution, gradient_clip, seed
        self.frozen_encoder = frozen_encoder
        if compile_encoder:
            model.image_encoder.compile()  # in place: the names of the weights stay
        self.judge = PromptSimulator(
            num_corrections=max(VALIDATION_CLICKS) - 1, num_empty_rounds=0, box_probability=0, click="center"
        )
        self.val_iou = ClickIoU(max(VALIDATION_CLICKS))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step over all rounds of a batch."""
        generator = self._generator()
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        encoded = self._encode(batch)
        embeddings = encoded.detach().requires_grad_(encoded.requires_grad)
        targets = self._targets(batch.target_masks)
        prompts = self.simulator.first(batch.target_masks, batch.image_index, generator)
        history: list[LossTerms] = []
        for round_ in self.simulator.rounds(generator):
            prediction = self.model.decode(embeddings, prompts, multimask_output=round_.multimask_output)
            terms = self.loss(self._at_loss_resolution(prediction), targets)
            self.manual_backward(terms.total)
            history.append(terms)
            best = prediction.best().detach()
            answers = self._answers(best)
            prompts = self.simulator.advance(round_, prompts, answers, batch.target_masks, best.mask_logits, generator)
        if encoded.requires_grad:
            self.manual_backward(encoded, gradient=embeddings.grad)
        self._finish_step(optimizer)
        self._log_step(batch, history)

    def _finish_step(self, optimizer: Any) -> None:
        if self.gradient_clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """IoU after each of five careful clicks, model frame."""
        generator = torch.Generator().manual_seed(0)
        embeddings = self._encode(batch)
        prompts = self.judge.first(batch.target_masks, batch.image_index, generator)
        ious = []
        for round_ in self.judge.rounds(generator):
            best = self.model.decode(embeddings, prompts, multimask_output=round_.multimask_output).best()
            answers = self._answers(best)
            ious.append(mask_iou(answers, batch.target_masks))
            prompts = self.judge.advance(round_, prompts, answers, batch.target_masks, best.mask_logits, generator)
        self.val_iou.update(torch.stack(ious, 1))
        self.log("val/skipped", float(len(batch.skipped)), reduce_fx="sum", sync_dist=True, batch_size=len(batch.keys))

    def on_validation_epoch_end(self) -> None:
        """Log mIoU@1, @3, @5."""
        means = self.val_iou.compute()
        self.val_iou.reset()
        for clicks in VALIDATION_CLICKS:
            self.log(f"val/miou_at_{clicks}", means[clicks - 1], prog_bar=True, sync_dist=False, rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule over the trainer's `max_steps`."""
        optimizer, schedule = self.optimizer_factory.build(self.model, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _encode(self, batch: Batch) -> Float[Tensor, "B E h w"]:
        return self.frozen_encoder(batch) if self.frozen_encoder else self.model.encode_images(batch.images, batch.sizes_hw)

    def _generator(self) -> torch.Generator:
        seed = (self.seed * 1_000_003 + self.global_step) * 4096 + self.global_rank
        torch.manual_seed(-seed - 1)  # drop path and dropout draw from the global generator
        return torch.Generator().manual_seed(seed)

    def _targets(self, masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N h w"]:
        if self.loss_resolution == "full":
            return masks.float()
        covered = F.adaptive_avg_pool2d(masks.float()[:, None], self.model.logits_size)[:, 0]
        # Half of a cell, or half of what its fullest cell has: an object thinner than half a cell is still an object.
        return (covered > 0.5 * covered.amax((1, 2), keepdim=True)).float()

    def _at_loss_resolution(self, prediction: Prediction) -> Prediction:
        if self.loss_resolution == "grid":
            return prediction
        return Prediction(mask_logits=self._upsample(prediction.mask_logits), iou_scores=prediction.iou_scores)

    def _answers(self, best: Prediction) -> Bool[Tensor, "N H W"]:
        return self._upsample(best.mask_logits)[:, 0] > 0

    def _upsample(self, mask_logits: Float[Tensor, "N M h w"]) -> Float[Tensor, "N M H W"]:
        size = (self.model.image_size, self.model.image_size)
        return F.interpolate(mask_logits, size, mode="bilinear", align_corners=False)

    def _log_step(self, batch: Batch, history: list[LossTerms]) -> None:
        num_masks, num_images = len(batch.image_index), len(batch.keys)
        first, last = history[0], history[-1]
        values: dict[str, Tensor | float] = {
            "loss": torch.stack([t.total.detach() for t in history]).mean(),
            "focal": torch.stack([t.focal for t in history]).mean(),
            "dice": torch.stack([t.dice for t in history]).mean(),
            "iou_loss": torch.stack([t.iou for t in history]).mean(),
            "iou_first_round": first.true_iou.mean(),
            "iou_last_round": last.true_iou.mean(),
            "masks_per_image": num_masks / num_images,
            "skipped": float(len(batch.skipped)),
        }
        self.log_dict({f"train/{k}": v for k, v in values.items()}, batch_size=num_masks)
        self.log("loss", values["loss"], prog_bar=True, logger=False, batch_size=num_masks)
        self.log("iou", values["iou_last_round"], prog_bar=True, logger=False, batch_size=num_masks)
