"""A model with scripted predictions, for tests of prompts and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.structures import Prediction, Prompts

SIZE = 64
Candidates = Sequence[tuple[Tensor, float]]


class ScriptedSam(Sam):
    """A model for 64-pixel images, for which image frame, model frame and decoder grid are equal.

    answer: function of one prompt's points (x, y, label; without padding) and of multimask_output that returns the candidates:
    64 x 64 bool masks or float logits, each with its predicted IoU. calls: prompts and multimask_output of each call.
    """

    def __init__(self, answer: Callable[[list[tuple[float, float, int]], bool], Candidates]) -> None:
        nn.Module.__init__(self)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.answer = answer
        self.calls: list[tuple[Prompts, bool]] = []

    @property
    def image_size(self) -> int:
        return SIZE

    @property
    def logits_size(self) -> int:
        return SIZE

    def encode_images(self, images: Tensor, sizes_hw: Tensor) -> Tensor:
        return images.float()

    def decode(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Prediction:
        self.calls.append((prompts, multimask_output))
        answers = [self.answer(points, multimask_output) for points in points_of(prompts)]
        logits = torch.stack([torch.stack([logits_of(mask) for mask, _ in candidates]) for candidates in answers])
        return Prediction(mask_logits=logits, iou_scores=torch.tensor([[s for _, s in candidates] for candidates in answers]))

    def decode_jobs(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None
    ) -> Iterator[DecodeJob]:
        def answer(rows: Tensor) -> tuple[Tensor, Tensor]:
            prediction = self.decode(image_embeddings, prompts[rows], multimask_output=multimask_output)
            return prediction.mask_logits, prediction.iou_scores

        yield DecodeJob(torch.arange(len(prompts)), len(prompts), answer)


def points_of(prompts: Prompts) -> list[list[tuple[float, float, int]]]:
    rows = zip(prompts.points_xy.tolist(), prompts.point_labels.tolist(), strict=True)
    return [[(x, y, label) for (x, y), label in zip(points, labels, strict=True) if label >= 0] for points, labels in rows]


def logits_of(mask: Tensor) -> Tensor:
    return mask.float() * 20 - 10 if mask.dtype == torch.bool else mask
