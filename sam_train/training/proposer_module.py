"""A proposer learns from the masks of stage one; the model whose image embeddings it reads stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from sam_train.losses import SamLoss
from sam_train.losses.box_loss import BoxLoss
from sam_train.masks import masks_to_boxes_xyxy
from sam_train.metrics.precision_recall import PrecisionRecall, pairwise_box_iou
from sam_train.model import Sam
from sam_train.model.proposer import Proposer
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.prompts.rng import PerImageRng
from sam_train.structures import Batch
from sam_train.training.gradients import clip_gradients, divide_gradients, sum_gradients
from sam_train.training.sam_module import SamModule
from sam_train.training.step_metrics import ReducedStepMetrics, StepMetricsAccumulator

PER_OBJECT = ("loss", "focal", "boxes")


class ProposerModule(SamModule):
    """Trains `proposer` on the boxes of a batch's masks: all masks of an image, or what is no object is learned wrong.

    Validation is precision and recall of the boxes that score at least `score_thresh`, at an IoU of 0.5.
    Other parameters as in `SamModule`; the image encoder must be frozen.
    """

    progress_bar_metrics = (("loss", "loss"), ("boxes", "boxes"))

    def __init__(
        self,
        model: Sam,
        simulator: PromptSimulator,
        loss: BoxLoss,
        optimizer: OptimizerFactory,
        *,
        proposer: Proposer,
        score_thresh: float = 0.25,
        max_boxes: int = 300,
        **values: Any,
    ) -> None:
        super().__init__(model, simulator, SamLoss(), optimizer, **values)  # masks and prompts have no part in it
        if self.frozen_encoder is None or self.ema:
            raise ValueError("a proposer reads a frozen image encoder and keeps no mean: freeze_image_encoder=true, no ema_decay")
        self.model.requires_grad_(requires_grad=False)
        self.proposer, self.box_loss = proposer, loss
        self.score_thresh, self.max_boxes = score_thresh, max_boxes
        self.val_matches = PrecisionRecall()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, on the proposer."""
        make = getattr(self.trainer.strategy, "build_optimizer", None)
        optimizer, schedule = self.optimizer_factory.build(self.proposer, self.trainer.max_steps, make)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Boxes against boxes, model frame."""
        embeddings, truths = self._encode(batch), masks_to_boxes_xyxy(batch.target_masks)
        for i, (height, width) in enumerate(batch.sizes_hw.tolist()):
            boxes, _ = self.proposer.propose(
                embeddings[i : i + 1],
                (height, width),
                self.model.image_size,
                score_thresh=self.score_thresh,
                max_boxes=self.max_boxes,
                nms_thresh=0.6,
            )
            self.val_matches.update(pairwise_box_iou(boxes, truths[batch.image_index == i]))

    def on_validation_epoch_end(self) -> None:
        """Log precision and recall."""
        precision, recall = self.val_matches.compute()
        self.val_matches.reset()
        self.log("val/box_precision", precision, prog_bar=True, sync_dist=True)
        self.log("val/box_recall", recall, prog_bar=True, sync_dist=True)

    def _new_step_metrics(self, device: torch.device) -> StepMetricsAccumulator:
        return StepMetricsAccumulator(device, PER_OBJECT)

    def _backward(self, batch: Batch, draws: PerImageRng, tally: StepMetricsAccumulator) -> None:
        """Add the gradient of the summed losses of `batch` to what is there."""
        maps = self.proposer(self._encode(batch))
        truths = masks_to_boxes_xyxy(batch.target_masks)
        sizes = self.proposer.size_classes(truths, self.model.image_size)
        in_cells = truths * (maps.center_logits.shape[-1] / self.model.image_size)
        of_images = [batch.image_index == i for i in range(len(batch.keys))]
        losses = [self.box_loss(maps, i, in_cells[these], sizes[these]) for i, these in enumerate(of_images)]
        focal, boxes = (torch.stack(parts).sum() for parts in zip(*losses, strict=True))
        self.manual_backward(focal + boxes)
        tally.add(0, torch.stack([focal + boxes, focal, boxes]).detach())

    def _mean_gradients(self, sums: ReducedStepMetrics) -> Float[Tensor, ""]:
        parameters = list(self.proposer.parameters())
        sum_gradients(parameters)
        divide_gradients(parameters, sums.count)
        return clip_gradients(parameters, self.gradient_clip)
