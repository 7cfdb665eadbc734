"""The training step of a box proposer, a detection head on the image embeddings of a frozen model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sam_train.losses.box_loss import BoxLoss
from sam_train.masks import masks_to_boxes_xyxy
from sam_train.metrics.precision_recall import PrecisionRecall, pairwise_box_iou
from sam_train.model import Sam
from sam_train.model.proposer import Proposer
from sam_train.optim import OptimizerFactory
from sam_train.structures import Batch
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.step_metrics import StepMetricsAccumulator
from sam_train.training.step_module import StepModule


class ProposerModule(StepModule):
    """Trains `proposer` on the boxes of a batch's masks.

    A batch must contain all masks of its images: an object without a mask is learned as background. Validation measures precision
    and recall, at an IoU of 0.5, of the boxes that score at least `score_thresh`.

    max_boxes: maximum number of boxes of an image in validation.
    options: other parameters as in `StepModule`.
    Raises ValueError if `ema_decay` is set.
    """

    default_monitor = "val/box_f1"
    progress_metrics = (("loss", "loss"), ("boxes", "boxes"))
    metric_names = ("loss", "focal", "boxes")

    def __init__(
        self,
        model: Sam,
        loss: BoxLoss,
        optimizer: OptimizerFactory,
        *,
        proposer: Proposer,
        frozen_encoder: FrozenEncoder,
        score_thresh: float = 0.25,
        max_boxes: int = 300,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, frozen_encoder=frozen_encoder, **options)
        if self.ema:
            raise ValueError("ema_decay is not supported for a proposer: set training.ema_decay=null")
        self.model.requires_grad_(requires_grad=False)
        self.proposer, self.loss = proposer, loss
        self.score_thresh, self.max_boxes = score_thresh, max_boxes
        self.val_matches = PrecisionRecall()

    @property
    def trained_module(self) -> nn.Module:
        """The proposer; the model stays frozen."""
        return self.proposer

    def backpropagate(self, batch: Batch, metrics: StepMetricsAccumulator, *, offset: int) -> None:
        """Accumulate the gradients of the summed box losses of a pass."""
        maps = self.proposer(self.encode(batch))
        boxes_xyxy = masks_to_boxes_xyxy(batch.target_masks)
        sizes = self.proposer.size_classes(boxes_xyxy, self.model.image_size)
        grid_boxes = boxes_xyxy * (maps.center_logits.shape[-1] / self.model.image_size)
        in_image = [batch.image_index == i for i in range(len(batch.keys))]
        losses = [self.loss(maps, i, grid_boxes[rows], sizes[rows]) for i, rows in enumerate(in_image)]
        focal, boxes = (torch.stack(parts).sum() for parts in zip(*losses, strict=True))
        self.manual_backward(focal + boxes)
        metrics.add(0, torch.stack([focal + boxes, focal, boxes]).detach())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Match the proposed boxes of each image with the ground-truth boxes, in the model frame."""
        embeddings, ground_truth = self.encode(batch), masks_to_boxes_xyxy(batch.target_masks)
        for i, (height, width) in enumerate(batch.sizes_hw.tolist()):
            boxes, _ = self.proposer.propose(
                embeddings[i : i + 1],
                (height, width),
                self.model.image_size,
                score_thresh=self.score_thresh,
                max_boxes=self.max_boxes,
                nms_thresh=0.6,
            )
            self.val_matches.update(pairwise_box_iou(boxes, ground_truth[batch.image_index == i]))

    def on_validation_epoch_end(self) -> None:
        """Log precision, recall and F1 of the boxes."""
        precision, recall = self.val_matches.compute()
        self.val_matches.reset()
        f1 = 2 * precision * recall / torch.clamp(torch.as_tensor(precision + recall), min=1e-12)
        self.log("val/box_f1", f1, sync_dist=True)
        self.log("val/box_precision", precision, sync_dist=True)
        self.log("val/box_recall", recall, sync_dist=True)
