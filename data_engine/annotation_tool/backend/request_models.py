"""Models of the request bodies. A key that a model does not declare is rejected."""

from __future__ import annotations

import base64
import binascii
from typing import Literal
from uuid import UUID

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.mask_store import AnnotatedMask


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class RleBody(_RequestBody):
    """COCO compressed RLE."""

    size: tuple[int, int]
    counts: str = Field(min_length=1, max_length=4_000_000, pattern=r"^[0-o]+$")


class CommitRequest(_RequestBody):
    """A new or changed mask of a task (kind "put"), or the deletion of one (kind "delete")."""

    task: int
    mask: UUID
    kind: Literal["put", "delete"]
    rle: RleBody | None = None
    origin: Literal["accepted", "edited", "clicked", "drawn"] = "clicked"
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    prompts: list[tuple[float, float, int]] = Field(default=[], max_length=1000)
    clicks: int = Field(default=0, ge=0, le=1_000_000)
    strokes: int = Field(default=0, ge=0, le=1_000_000)
    seconds: float = Field(default=0.0, ge=0)
    wall_seconds: float = Field(default=0.0, ge=0)
    checkpoint: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _check_rle(self) -> CommitRequest:
        if self.kind == "put" and self.rle is None:
            raise ValueError('a commit of kind "put" needs an rle')
        return self

    def annotated_mask(self) -> AnnotatedMask:
        """Return the mask of a commit of kind "put"."""
        assert self.rle is not None
        return AnnotatedMask(
            rle={"size": list(self.rle.size), "counts": self.rle.counts},
            origin=self.origin,
            predicted_iou=self.predicted_iou,
            stability_score=self.stability_score,
            prompts=[list(map(float, prompt)) for prompt in self.prompts],
            clicks=self.clicks,
            strokes=self.strokes,
            seconds=self.seconds,
            wall_seconds=self.wall_seconds,
            checkpoint=self.checkpoint,
        )


class DecodeRequest(_RequestBody):
    """A prompt that the server decodes."""

    checkpoint: str
    prompts: list[tuple[float, float, int]] = Field(min_length=1, max_length=1000)
    """x, y in the image frame and a label as PointLabel, without padding points."""
    multimask_output: bool
    mask_logits: str | None = Field(default=None, max_length=8_000_000)
    """Mask prompt: base64 of little-endian float16 logits, logits_size x logits_size."""

    def decoded_mask_logits(self, logits_size: int) -> np.ndarray | None:
        """Return the mask prompt, 1 x 1 x logits_size x logits_size float32. Raises HttpError (422) if it is malformed."""
        if self.mask_logits is None:
            return None
        try:
            values = np.frombuffer(base64.b64decode(self.mask_logits, validate=True), "<f2")
        except (binascii.Error, ValueError) as error:
            raise HttpError(422, f"mask_logits is not base64 of float16 values: {error}") from error
        if values.size != logits_size * logits_size or not np.isfinite(values).all():
            message = f"mask_logits has {values.size} values: expected {logits_size} x {logits_size} finite ones"
            raise HttpError(422, message)
        return values.astype(np.float32).reshape(1, 1, logits_size, logits_size)


class HeartbeatRequest(_RequestBody):
    """Work time of an open page since its last heartbeat."""

    seconds: float = Field(default=0.0, ge=0, le=86_400)


class SkipRequest(_RequestBody):
    """The reason why an image is not annotated."""

    reason: str = Field(min_length=1, max_length=500)


class ReviewRequest(_RequestBody):
    """A reviewer's decision on a finished task."""

    accept: bool
    note: str = Field(default="", max_length=2000)
