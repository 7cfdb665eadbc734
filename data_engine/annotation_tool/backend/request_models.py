"""Bodies of requests. What is not named here is refused."""

from __future__ import annotations

import base64
import binascii
from typing import Literal
from uuid import UUID

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.mask_store import AnnotatedMask

Number = float


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class RleBody(_RequestBody):
    """COCO compressed RLE."""

    size: tuple[int, int]
    counts: str = Field(min_length=1, max_length=4_000_000, pattern=r"^[0-o]+$")


class CommitRequest(_RequestBody):
    """A mask of a task, or with kind "delete" its end."""

    task: int
    mask: UUID
    kind: Literal["put", "delete"]
    rle: RleBody | None = None
    origin: Literal["accepted", "edited", "clicked", "drawn"] = "clicked"
    predicted_iou: Number = 1.0
    stability_score: Number = 1.0
    prompts: list[tuple[Number, Number, int]] = Field(default=[], max_length=1000)
    clicks: int = Field(default=0, ge=0, le=1_000_000)
    strokes: int = Field(default=0, ge=0, le=1_000_000)
    seconds: Number = Field(default=0.0, ge=0)
    wall_seconds: Number = Field(default=0.0, ge=0)
    checkpoint: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _has_a_mask(self) -> CommitRequest:
        if self.kind == "put" and self.rle is None:
            raise ValueError('a commit of kind "put" needs an rle')
        return self

    def work(self) -> AnnotatedMask:
        """Of kind "put"."""
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
    """A prompt for the decoder on the server."""

    checkpoint: str
    prompts: list[tuple[Number, Number, int]] = Field(min_length=1, max_length=1000)
    """x, y in the image frame and a label as PointLabel, padding left out."""
    multimask_output: bool
    mask_logits: str | None = Field(default=None, max_length=8_000_000)
    """Base64 of little-endian float16, side x side."""

    def logits(self, side: int) -> np.ndarray | None:
        """1 x 1 x side x side float32. Raises HttpError (422)."""
        if self.mask_logits is None:
            return None
        try:
            values = np.frombuffer(base64.b64decode(self.mask_logits, validate=True), "<f2")
        except (binascii.Error, ValueError) as error:
            raise HttpError(422, f"mask_logits is no base64 of float16: {error}") from error
        if values.size != side * side or not np.isfinite(values).all():
            raise HttpError(422, f"mask_logits has {values.size} values: expected {side} x {side} finite ones")
        return values.astype(np.float32).reshape(1, 1, side, side)


class HeartbeatRequest(_RequestBody):
    """A word now and then from a page that is open."""

    seconds: Number = Field(default=0.0, ge=0, le=86_400)


class SkipRequest(_RequestBody):
    """Why an image is not annotated."""

    reason: str = Field(min_length=1, max_length=500)


class ReviewRequest(_RequestBody):
    """What a reviewer says of a finished task."""

    accept: bool
    note: str = Field(default="", max_length=2000)
