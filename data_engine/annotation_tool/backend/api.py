"""The routes under /api: each wants a token, and answers JSON but for pictures, embeddings and the decoder."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, JSONResponse

from data_engine.annotation_tool.backend.access import User
from data_engine.annotation_tool.backend.app_context import AppContext, Context, CurrentUser
from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import GONE
from data_engine.annotation_tool.backend.mask_store import ProposedMask
from data_engine.annotation_tool.backend.request_models import (
    CommitRequest,
    DecodeRequest,
    HeartbeatRequest,
    ReviewRequest,
    SkipRequest,
)
from data_engine.annotation_tool.backend.summary import summary
from data_engine.annotation_tool.backend.task_queue import SKIP_REASONS, Task
from sam_train.inference import GeneratedMask
from sam_train.records import MaskRecord

api = APIRouter(prefix="/api")


@api.get("/session")
def session(context: Context, user: CurrentUser) -> dict[str, Any]:
    """Who one is, the model, and what the page has to know."""
    embedding_service, model = context.embedding_service, None
    if embedding_service is not None:
        onnx = embedding_service.decoder_onnx
        model = {
            "checkpoint": embedding_service.checkpoint,
            "image_size": embedding_service.model.image_size,
            "logits_size": embedding_service.model.logits_size,
            "decoder": None if onnx is None else f"/api/decoder/{embedding_service.checkpoint}",
        }
    return {
        "annotator": user.name,
        "role": user.role,
        "model": model,
        "idle_after_s": context.idle_after_s,
        "move_on_after_s": context.move_on_after_s,
        "skip_reasons": SKIP_REASONS,
        "proposes": embedding_service is not None and embedding_service.proposals is not None,
    }


@api.get("/decoder/{checkpoint}", response_model=None)
def decoder(checkpoint: str, context: Context, user: CurrentUser) -> Response:
    """The decoder as ONNX. 409 for another checkpoint's."""
    if context.embedding_service is None or context.embedding_service.decoder_onnx is None:
        raise HttpError(404, "this server has no decoder for browsers")
    context.embedding_service.refuse_another(checkpoint)
    keep = {"Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(context.embedding_service.decoder_onnx, media_type="application/octet-stream", headers=keep)


@api.post("/next")
def next_task(context: Context, user: CurrentUser) -> dict[str, Any]:
    """The annotator's next task, leased; {"task": null} when there is none. Pictures that do not decode or
    were taken down are skipped by name."""
    while (task := context.queue.next(user.name)) is not None:
        try:
            picture = context.images.get(task.image)
        except HttpError as error:
            why = "taken down" if error.status == GONE else "does not decode"
            context.queue.skip(task.id, user.name, f"{why}: {error}"[:500])
            continue
        if context.show_existing_masks and picture.record is not None:
            context.commits.add_proposals(task.id, [_of_corpus(mask) for mask in picture.record.masks])
        if context.embedding_service is not None:
            context.embedding_service.prefetch([task.image, *context.queue.upcoming_images(context.num_prefetch)])
        return {"task": _task_json(context, task), "states": context.queue.states()}
    return {"task": None, "states": context.queue.states()}


@api.post("/review/next")
def next_review(context: Context, user: CurrentUser, after: int = 0) -> dict[str, Any]:
    """For reviewers: a finished task of somebody else; first what they are correcting themselves."""
    _only_reviewers(user)
    if (held := context.queue.leased_by(user.name)) is not None:
        return {"task": _task_json(context, held), "states": context.queue.states(), "correcting": True}
    task = context.queue.next_for_review(user.name, after)
    return {"task": None if task is None else _task_json(context, task), "states": context.queue.states()}


@api.post("/previous")
def previous(context: Context, user: CurrentUser, before: int | None = None) -> dict[str, Any]:
    """Reopen the task that this annotator ended last (before task `before`)."""
    task = context.queue.last_ended_by(user.name, before)
    if task is None:
        raise HttpError(404, "you have ended no task before this one")
    return {"task": _task_json(context, context.queue.reopen(task.id, user.name)), "states": context.queue.states()}


@api.get("/tasks/{task}")
def one_task(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """A task of one's own; a reviewer sees every one."""
    return {"task": _task_json(context, _seen(context, user, task)), "states": context.queue.states()}


@api.get("/tasks/{task}/image", response_model=None)
def image(task: int, context: Context, user: CurrentUser) -> Response:
    """The picture, JPEG."""
    picture = context.images.get(_seen(context, user, task).image)
    return Response(picture.jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


@api.get("/tasks/{task}/embedding", response_model=None)
def embedding(task: int, checkpoint: str, context: Context, user: CurrentUser) -> Response:
    """Its embedding, float16, shape in X-Shape; 202 while it is made. 409 for another checkpoint than the server's."""
    made = _encoding(context).embedding(_seen(context, user, task).image, checkpoint)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    headers = {"X-Shape": ",".join(map(str, made.shape)), "X-Checkpoint": checkpoint}
    return Response(made.numpy().astype("<f2").tobytes(), media_type="application/octet-stream", headers=headers)


@api.post("/tasks/{task}/proposals", response_model=None)
def proposals(task: int, context: Context, user: CurrentUser) -> Response:
    """The task's masks with those that the model proposes, put there once; 202 while they are made."""
    embedding_service = _encoding(context)
    if embedding_service.proposals is None:
        raise HttpError(404, "this server proposes no masks: it was started without generator@proposals=")
    made = embedding_service.request_proposals(_seen(context, user, task).image)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    context.queue.renew_lease(task, user.name)
    context.commits.add_proposals(task, [_of_model(mask, embedding_service.checkpoint) for mask in made])
    return JSONResponse({"masks": context.commits.list_masks(task)})


@api.post("/tasks/{task}/decode", response_model=None)
def decode(task: int, message: DecodeRequest, context: Context, user: CurrentUser) -> Response:
    """Logits (float16, shape in X-Shape, estimated IoUs in X-Iou-Scores) for a prompt, where the page does not decode."""
    embedding_service, found = _encoding(context), _seen(context, user, task)
    made = embedding_service.embedding(found.image, message.checkpoint)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    picture = context.images.get(found.image)
    answer = embedding_service.decode(
        made,
        (picture.height, picture.width),
        message.prompts,
        mask_logits=message.logits(embedding_service.model.logits_size),
        multimask_output=message.multimask_output,
    )
    low = answer.mask_logits[0].clamp(-60000, 60000).numpy().astype("<f2")
    scores = ",".join(f"{float(score):.6g}" for score in np.atleast_1d(answer.iou_scores[0].numpy()))
    headers = {"X-Shape": ",".join(map(str, low.shape)), "X-Iou-Scores": scores}
    return Response(low.tobytes(), media_type="application/octet-stream", headers=headers)


@api.put("/commits/{commit}")
def put_commit(commit: UUID, message: CommitRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Write or delete a mask. The same request again answers the same and changes nothing."""
    common = {"task": message.task, "mask": str(message.mask), "annotator": user.name}
    if message.kind == "delete":
        new = context.commits.delete(str(commit), **common)  # type: ignore[arg-type]
        return {"commit": str(commit), "new": new}
    picture = context.images.get(_seen(context, user, message.task).image)
    if message.checkpoint and context.embedding_service is not None:
        context.embedding_service.refuse_another(message.checkpoint)
    size = (picture.height, picture.width)
    new = context.commits.put(str(commit), **common, work=message.work(), image_hw=size)  # type: ignore[arg-type]
    return {"commit": str(commit), "new": new}


@api.post("/tasks/{task}/alive")
def alive(task: int, message: HeartbeatRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """The annotator is still there: the lease goes on."""
    context.queue.renew_lease(task, user.name, message.seconds)
    return {"lease_s": context.queue.lease_s}


@api.post("/tasks/{task}/done")
def done(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Finished."""
    context.queue.done(task, user.name)
    return {"states": context.queue.states()}


@api.post("/tasks/{task}/skip")
def skip(task: int, message: SkipRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Not to be annotated, and why."""
    context.queue.skip(task, user.name, message.reason)
    return {"states": context.queue.states()}


@api.post("/tasks/{task}/reopen")
def reopen(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """Go on with a finished or skipped task of one's own."""
    return {"task": _task_json(context, context.queue.reopen(task, user.name)), "states": context.queue.states()}


@api.post("/tasks/{task}/review")
def review(task: int, message: ReviewRequest, context: Context, user: CurrentUser) -> dict[str, Any]:
    """For reviewers: accept, or send back with a note."""
    _only_reviewers(user)
    context.queue.review(task, user.name, accept=message.accept, note=message.note)
    return {"states": context.queue.states()}


@api.post("/tasks/{task}/take-over")
def claim_for_correction(task: int, context: Context, user: CurrentUser) -> dict[str, Any]:
    """For reviewers: correct a finished task themselves."""
    _only_reviewers(user)
    return {
        "task": _task_json(context, context.queue.claim_for_correction(task, user.name)),
        "states": context.queue.states(),
        "correcting": True,
    }


@api.get("/summary")
def numbers(context: Context, user: CurrentUser) -> dict[str, Any]:
    """What masks cost; an annotator sees their own rows, a reviewer all."""
    found = summary(context.queue.database)
    if user.role != "reviewer":
        return {"annotators": [row for row in found["annotators"] if row["annotator"] == user.name]}
    return {**found, "states": context.queue.states()}


def _of_corpus(mask: MaskRecord) -> ProposedMask:
    """A mask that the source has, to be shown."""
    return ProposedMask(
        rle=mask.segmentation,
        name=mask.name,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        checkpoint=mask.provenance.checkpoint if mask.provenance else "",
    )


def _of_model(mask: GeneratedMask, checkpoint: str) -> ProposedMask:
    return ProposedMask(
        rle=mask.rle,
        name=mask.name,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        prompts=[[x, y, float(label)] for x, y, label in mask.prompt],
        checkpoint=checkpoint,
    )


def _encoding(context: AppContext) -> EmbeddingService:
    if context.embedding_service is None:
        raise HttpError(404, "this server has no model: masks are drawn")
    return context.embedding_service


def _only_reviewers(user: User) -> None:
    if user.role != "reviewer":
        raise HttpError(403, f"{user.name} is no reviewer")


def _seen(context: AppContext, user: User, task: int) -> Task:
    found = context.queue.task(task)
    if found.annotator != user.name and user.role != "reviewer":
        raise HttpError(403, f"task {task} is not yours")
    return found


def _task_json(context: AppContext, task: Task) -> dict[str, Any]:
    picture = context.images.get(task.image)
    return {
        "id": task.id,
        "image": task.image,
        "origin": context.images.references[task.image].origin,
        "height": picture.height,
        "width": picture.width,
        "state": task.state,
        "note": task.note,
        "annotator": task.annotator,
        "masks": context.commits.list_masks(task.id),
    }
