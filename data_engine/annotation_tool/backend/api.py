"""Routes under /api. Each requires a token and returns JSON, except for images, embeddings, logits and the decoder."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, JSONResponse
from torch import Tensor

from data_engine.annotation_tool.backend.access import User
from data_engine.annotation_tool.backend.app_context import AppContext, Context, CurrentUser
from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import HTTP_GONE
from data_engine.annotation_tool.backend.mask_store import ProposedMask
from data_engine.annotation_tool.backend.request_models import (
    CommitRequest,
    DecodeRequest,
    HeartbeatRequest,
    ReviewRequest,
    SkipRequest,
)
from data_engine.annotation_tool.backend.summary import summarize
from data_engine.annotation_tool.backend.task_queue import SKIP_REASONS, Task
from sam_train.inference import GeneratedMask
from sam_train.records import MaskRecord

api = APIRouter(prefix="/api")


@api.get("/session")
def session(context: Context, user: CurrentUser) -> dict[str, Any]:
    """Return the user, the model and the settings of the page."""
    service, model = context.embedding_service, None
    if service is not None:
        model = {
            "checkpoint": service.checkpoint,
            "image_size": service.model.image_size,
            "logits_size": service.model.logits_size,
            "decoder": None if service.decoder_onnx is None else f"/api/decoder/{service.checkpoint}",
        }
    return {
        "annotator": user.name,
        "role": user.role,
        "model": model,
        "idle_after_s": context.idle_after_s,
        "move_on_after_s": context.move_on_after_s,
        "skip_reasons": SKIP_REASONS,
        "has_proposals": service is not None and service.mask_generator is not None,
    }


@api.get("/decoder/{checkpoint}", response_model=None)
def decoder(checkpoint: str, context: Context, user: CurrentUser) -> Response:
    """Return the mask decoder as ONNX. 409 for another checkpoint."""
    service = context.embedding_service
    if service is None or service.decoder_onnx is None:
        raise HttpError(404, "this server has no decoder for browsers")
    service.check_checkpoint(checkpoint)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(service.decoder_onnx, media_type="application/octet-stream", headers=headers)


@api.post("/next")
def next_task(context: Context, user: CurrentUser) -> dict[str, Any]:
    """Lease and return the annotator's next task; {"task": null} if there is none.

    Images that cannot be decoded or were taken down are skipped, with that reason.
    """
    while (task := context.queue.next(user.name)) is not None:
        try:
            image = context.images.get(task.image)
        except HttpError as error:
            reason = "taken down" if error.status == HTTP_GONE else "does not decode"
            context.queue.skip(task.id, user.name, f"{reason}: {error}"[:500])
            continue
        if context.show_existing_masks and image.record is not None:
            context.masks.add_proposals(task.id, [_proposal_from_record(mask) for mask in image.record.masks])
        if context.embedding_service is not None:
            context.embedding_service.prefetch([task.image, *context.queue.upcoming_images(context.num_prefetch)])
        return _task_response(context, task)
    return _task_response(context, None)


@api.post("/review/next")
def next_review(context: Context, user: CurrentUser, after: int = 0) -> dict[str, Any]:
    """Return the task that the reviewer is correcting, else the next done task of another annotator."""
    _require_reviewer(user)
    if (leased := context.queue.leased_by(user.name)) is not None:
        return {**_task_response(context, leased), "correcting": True}
    return _task_response(context, context.queue.next_for_review(user.name, after))


@api.post("/previous")
def previous(context: Context, user: CurrentUser, before: int | None = None) -> dict[str, Any]:
    """Reopen the task that this annotator ended last, or last before task `before`."""
    task = context.queue.last_ended_by(user.name, before)
    if task is None:
        raise HttpError(404, "you have no earlier task")
    return _task_response(context, context.queue.reopen(task.id, user.name))


@api.get("/tasks/{task}")
def get_task(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Return a task: annotators see their own, reviewers all."""
    return _task_response(context, _visible_task(context, user, task))


@api.get("/tasks/{task}/image", response_model=None)
def image(task: int, context: Context, user: CurrentUser) -> Response:
    """Return the task's image as JPEG."""
    image = context.images.get(_visible_task(context, user, task).image)
    return Response(image.jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


@api.get("/tasks/{task}/embedding", response_model=None)
def embedding(task: int, checkpoint: str, context: Context, user: CurrentUser) -> Response:
    """Return the image embedding, float16, shape in X-Shape; 202 while it is computed. 409 for another checkpoint."""
    embedding = _require_model(context).request_embedding(_visible_task(context, user, task).image, checkpoint)
    return _pending() if embedding is None else _float16_response(embedding, {"X-Checkpoint": checkpoint})


@api.post("/tasks/{task}/proposals", response_model=None)
def proposals(task: int, context: Context, user: CurrentUser) -> Response:
    """Add the masks that the model proposes, once, and return all masks of the task; 202 while they are computed."""
    service = _require_model(context)
    if service.mask_generator is None:
        raise HttpError(404, "this server proposes no masks: it was started without generator@proposals=")
    masks = service.request_proposals(_visible_task(context, user, task).image)
    if masks is None:
        return _pending()
    context.queue.renew_lease(task, user.name)
    context.masks.add_proposals(task, [_proposal_from_model(mask, service.checkpoint) for mask in masks])
    return JSONResponse({"masks": context.masks.list_masks(task)})


@api.post("/tasks/{task}/decode", response_model=None)
def decode(task: int, body: DecodeRequest, context: Context, user: CurrentUser) -> Response:
    """Decode a prompt for a page that has no decoder of its own.

    Returns logits, float16, with their shape in X-Shape and the predicted IoUs in X-Iou-Scores.
    """
    service, key = _require_model(context), _visible_task(context, user, task).image
    embedding = service.request_embedding(key, body.checkpoint)
    if embedding is None:
        return _pending()
    image = context.images.get(key)
    prediction = service.decode(
        embedding,
        (image.height, image.width),
        body.prompts,
        mask_logits=body.decoded_mask_logits(service.model.logits_size),
        multimask_output=body.multimask_output,
    )
    logits = prediction.mask_logits[0].clamp(-60000, 60000)
    scores = ",".join(f"{float(score):.6g}" for score in np.atleast_1d(prediction.iou_scores[0].numpy()))
    return _float16_response(logits, {"X-Iou-Scores": scores})


@api.put("/commits/{commit}")
def put_commit(commit: UUID, body: CommitRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Write or delete a mask. Repeating a request returns the same response and changes nothing."""
    if body.kind == "delete":
        new = context.masks.delete(str(commit), task=body.task, mask=str(body.mask), annotator=user.name)
        return {"commit": str(commit), "new": new}
    image = context.images.get(_visible_task(context, user, body.task).image)
    if body.checkpoint and context.embedding_service is not None:
        context.embedding_service.check_checkpoint(body.checkpoint)
    new = context.masks.put(
        str(commit),
        task=body.task,
        mask=str(body.mask),
        annotated=body.annotated_mask(),
        annotator=user.name,
        image_hw=(image.height, image.width),
    )
    return {"commit": str(commit), "new": new}


@api.post("/tasks/{task}/heartbeat")
def heartbeat(task: int, body: HeartbeatRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Renew the lease of a task and add work time to it."""
    context.queue.renew_lease(task, user.name, body.seconds)
    return {"lease_s": context.queue.lease_s}


@api.post("/tasks/{task}/done")
def done(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Mark a task as done."""
    context.queue.done(task, user.name)
    return {"task_counts": context.queue.count_by_state()}


@api.post("/tasks/{task}/skip")
def skip(task: int, body: SkipRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Skip a task, with a reason."""
    context.queue.skip(task, user.name, body.reason)
    return {"task_counts": context.queue.count_by_state()}


@api.post("/tasks/{task}/reopen")
def reopen(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Lease the user's own done or skipped task again."""
    return _task_response(context, context.queue.reopen(task, user.name))


@api.post("/tasks/{task}/review")
def review(task: int, body: ReviewRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Accept a done task or send it back; reviewers only."""
    _require_reviewer(user)
    context.queue.review(task, user.name, accept=body.accept, note=body.note)
    return {"task_counts": context.queue.count_by_state()}


@api.post("/tasks/{task}/correct")
def correct(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Lease a done task to the reviewer, who corrects it; reviewers only."""
    _require_reviewer(user)
    return {**_task_response(context, context.queue.claim_for_correction(task, user.name)), "correcting": True}


@api.get("/summary")
def summary(context: Context, user: CurrentUser) -> dict[str, Any]:
    """Return annotation costs: an annotator's own rows, or everything for a reviewer."""
    result = summarize(context.queue.database)
    if user.role != "reviewer":
        return {"annotators": [row for row in result["annotators"] if row["annotator"] == user.name]}
    return {**result, "task_counts": context.queue.count_by_state()}


def _proposal_from_record(mask: MaskRecord) -> ProposedMask:
    return ProposedMask(
        rle=mask.segmentation,
        name=mask.name,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        checkpoint=mask.provenance.checkpoint if mask.provenance else "",
    )


def _proposal_from_model(mask: GeneratedMask, checkpoint: str) -> ProposedMask:
    return ProposedMask(
        rle=mask.rle,
        name=mask.name,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        prompts=[[x, y, float(label)] for x, y, label in mask.prompt_points],
        checkpoint=checkpoint,
    )


def _require_model(context: AppContext) -> EmbeddingService:
    if context.embedding_service is None:
        raise HttpError(404, "this server has no model: draw masks with the brush")
    return context.embedding_service


def _require_reviewer(user: User) -> None:
    if user.role != "reviewer":
        raise HttpError(403, f"{user.name} is not a reviewer")


def _visible_task(context: AppContext, user: User, task: int) -> Task:
    visible = context.queue.task(task)
    if visible.annotator != user.name and user.role != "reviewer":
        raise HttpError(403, f"task {task} is not yours")
    return visible


def _pending() -> Response:
    return JSONResponse({"state": "pending"}, 202, {"Retry-After": "1"})


def _float16_response(values: Tensor, headers: dict[str, str]) -> Response:
    headers = {"X-Shape": ",".join(map(str, values.shape)), **headers}
    return Response(values.numpy().astype("<f2").tobytes(), media_type="application/octet-stream", headers=headers)


def _task_response(context: AppContext, task: Task | None) -> dict[str, Any]:
    return {"task": None if task is None else _task_json(context, task), "task_counts": context.queue.count_by_state()}


def _task_json(context: AppContext, task: Task) -> dict[str, Any]:
    image = context.images.get(task.image)
    return {
        "id": task.id,
        "image": task.image,
        "origin": context.images.references[task.image].origin,
        "height": image.height,
        "width": image.width,
        "state": task.state,
        "note": task.note,
        "annotator": task.annotator,
        "masks": context.masks.list_masks(task.id),
    }
