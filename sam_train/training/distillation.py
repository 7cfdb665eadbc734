"""A small image encoder learns a large one's image embeddings (MobileSAM, Zhang et al. 2023, section 3.2).

The mask decoder has no part in it: both models share the teacher's. So a picture passes the teacher once, whose embedding is
kept on the disk, and a step costs no more than the student's image encoder.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional as F

from sam_train.checkpoint import load_weights
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.model.transformer import TwoWayBlock
from sam_train.prompts.rng import PerImageRng
from sam_train.structures import Batch
from sam_train.training.frozen_encoder import FrozenEncoder
from sam_train.training.sam_module import SamModule
from sam_train.training.step_metrics import StepMetricsAccumulator

PER_PICTURE = ("loss", "cosine")


class DistillModule(SamModule):
    """Trains the image encoder of a `Sam` on the mean squared difference from a teacher's image embeddings.

    The loss of a step is the mean over its pictures; masks and prompts are for the validation, which asks the student's
    embeddings and the teacher's decoder for masks. Padding is compared too: the decoder sees it.

    teacher: gives the embeddings to match; `copy_teacher_decoder` has made the student fit for it.
    Other parameters as in `SamModule`.
    """

    progress_bar_metrics = (("loss", "loss"), ("cosine", "cosine"))

    def __init__(self, *parts: Any, teacher: FrozenEncoder, **values: Any) -> None:
        super().__init__(*parts, **values)
        self.teacher = teacher
        self.model.prompt_encoder.requires_grad_(requires_grad=False)
        self.model.mask_decoder.requires_grad_(requires_grad=False)

    def _new_step_metrics(self, device: torch.device) -> StepMetricsAccumulator:
        return StepMetricsAccumulator(device, PER_PICTURE, per="images")

    def _backward(self, batch: Batch, draws: PerImageRng, tally: StepMetricsAccumulator) -> None:
        """Add the gradient of the summed losses of `batch` to what is there."""
        wanted, found = self.teacher(batch).float(), self._encode(batch).float()
        losses = (found - wanted).square().mean((1, 2, 3))
        self.manual_backward(losses.sum())
        cosines = F.cosine_similarity(found.detach(), wanted).mean((1, 2))
        tally.add(0, torch.stack([losses.detach().sum(), cosines.sum()]))


def copy_teacher_decoder(student: Sam, teacher: Sam, *, origin: str) -> None:
    """Give the student the teacher's prompt encoder and mask decoder. `origin` names the teacher in messages.

    Raises ConfigError when the two see pictures of different sizes or have other attention heads, and CheckpointError when
    weights do not fit.
    """
    for name, wanted, there in (
        ("image_size", teacher.image_size, student.image_size),
        ("decoder_heads", _decoder_heads(teacher), _decoder_heads(student)),
        ("iou_sigmoid", teacher.mask_decoder.iou_sigmoid, student.mask_decoder.iou_sigmoid),
        ("high_res_features", teacher.has_high_res_features, student.has_high_res_features),
        ("text_dim", teacher.prompt_encoder.text_dim, student.prompt_encoder.text_dim),
    ):
        if wanted != there:
            raise ConfigError(f"the teacher {origin} has {name}={wanted}, the student {there}: set model.{name}={wanted}")
    others = {name: value for name, value in teacher.state_dict().items() if not name.startswith("image_encoder.")}
    load_weights(student, {**student.state_dict(), **others}, origin=f"the teacher {origin}")


def _decoder_heads(model: Sam) -> int:
    return cast(TwoWayBlock, model.mask_decoder.transformer.layers[0]).self_attn.num_heads
