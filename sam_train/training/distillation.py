"""Distillation: a small image encoder learns the image embeddings of a large one (MobileSAM, Zhang et al. 2023, section 3.2).

The mask decoder is not trained: the student uses the teacher's. Each image is encoded by the teacher once and its embedding is
cached on disk, so that a step costs only the student's image encoder.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional as F

from sam_train.checkpoint import load_weights
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.transformer import TwoWayBlock
from sam_train.optim import OptimizerFactory
from sam_train.structures import Batch
from sam_train.training.click_validation import ClickMeasure, ClickValidation
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.step_metrics import StepMetricsAccumulator
from sam_train.training.step_module import StepModule


class DistillModule(StepModule):
    """Trains the image encoder of a `Sam` on the mean squared error between its image embeddings and a teacher's.

    The loss of a step is the mean over its images. Masks are used in validation only, which decodes the student's embeddings with
    the teacher's decoder. Padding is part of the loss, because the decoder sees it.

    teacher: computes the target embeddings; call `copy_teacher_decoder` on the student first.
    validation: as in `SamModule`.
    options: other parameters as in `StepModule`.
    """

    progress_metrics = (("loss", "loss"), ("cosine", "cosine"))
    metric_names = ("loss", "cosine")
    mean_over = "images"

    def __init__(
        self,
        model: Sam,
        optimizer: OptimizerFactory,
        *,
        teacher: FrozenEncoder,
        validation: ClickMeasure | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, **options)
        self.teacher = teacher
        self.model.prompt_encoder.requires_grad_(requires_grad=False)
        self.model.mask_decoder.requires_grad_(requires_grad=False)
        self.click_validation = ClickValidation(validation)

    def backpropagate(self, batch: Batch, metrics: StepMetricsAccumulator, *, offset: int) -> None:
        """Accumulate the gradients of the summed embedding losses of a pass."""
        targets, embeddings = self.teacher(batch).float(), self.encode(batch).float()
        losses = (embeddings - targets).square().mean((1, 2, 3))
        self.manual_backward(losses.sum())
        cosines = F.cosine_similarity(embeddings.detach(), targets).mean((1, 2))
        metrics.add(0, torch.stack([losses.detach().sum(), cosines.sum()]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the IoU of the student with the teacher's decoder after each click."""
        self.click_validation.update(self.model, batch, self.encode)
        self.log("val/skipped", float(len(batch.skipped)), reduce_fx="sum", sync_dist=True, batch_size=len(batch.keys))

    def on_validation_epoch_end(self) -> None:
        """Log mIoU@1, @3 and @5."""
        self.click_validation.log_and_reset(self, has_text_prompts=self.model.prompt_encoder.text_dim is not None)


def copy_teacher_decoder(student: Sam, teacher: Sam, *, origin: str) -> None:
    """Copy the weights of the teacher's prompt encoder and mask decoder into the student.

    origin: names the teacher in error messages.
    Raises ConfigError if the two models differ in image size, attention heads or another setting that the decoder depends on, and
    CheckpointError if the weights do not fit.
    """
    for name, expected, actual in (
        ("image_size", teacher.image_size, student.image_size),
        ("decoder_heads", _decoder_heads(teacher), _decoder_heads(student)),
        ("iou_sigmoid", teacher.mask_decoder.iou_sigmoid, student.mask_decoder.iou_sigmoid),
        ("iou_from_masks", teacher.mask_decoder.iou_from_masks, student.mask_decoder.iou_from_masks),
        ("high_res_features", teacher.has_high_res_features, student.has_high_res_features),
        ("text_dim", teacher.prompt_encoder.text_dim, student.prompt_encoder.text_dim),
    ):
        if expected != actual:
            raise ConfigError(f"the teacher {origin} has {name}={expected}, the student {actual}: set model.{name}={expected}")
    decoder = {name: value for name, value in teacher.state_dict().items() if not name.startswith("image_encoder.")}
    load_weights(student, {**student.state_dict(), **decoder}, origin=f"the teacher {origin}")


def _decoder_heads(model: Sam) -> int:
    return cast(TwoWayBlock, model.mask_decoder.transformer.layers[0]).self_attn.num_heads
