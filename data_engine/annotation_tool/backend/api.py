"""The routes under /api: each wants a token, and answers JSON but for pictures, embeddings and the decoder."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, JSONResponse

from data_engine.annotation_tool.backend.access import User
from data_engine.annotation_tool.backend.app_context import AppContext, AtDesk, Who
from data_engine.annotation_tool.backend.commits import ProposedMask
from data_engine.annotation_tool.backend.embedding_service import EmbeddingService
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.image_cache import GONE
from data_engine.annotation_tool.backend.messages import AliveMessage, CommitMessage, DecodeMessage, ReviewMessage, SkipMessage
from data_engine.annotation_tool.backend.queue import SKIP_REASONS, Task
from data_engine.annotation_tool.backend.summary import summary
from sam_train.inference import GeneratedMask
from sam_train.records import MaskRecord

api = APIRouter(prefix="/api")


@api.get("/session")
def session(desk: AtDesk, who: Who) -> dict[str, Any]:
    """Who one is, the model, and what the page has to know."""
    encoding, model = desk.encoding, None
    if encoding is not None:
        onnx = encoding.decoder_onnx
        model = {
            "checkpoint": encoding.checkpoint,
            "image_size": encoding.model.image_size,
            "logits_size": encoding.model.logits_size,
            "decoder": None if onnx is None else f"/api/decoder/{encoding.checkpoint}",
        }
    return {
        "annotator": who.name,
        "role": who.role,
        "model": model,
        "idle_after_s": desk.idle_after_s,
        "move_on_after_s": desk.move_on_after_s,
        "skip_reasons": SKIP_REASONS,
        "proposes": encoding is not None and encoding.proposals is not None,
    }


@api.get("/decoder/{checkpoint}", response_model=None)
def decoder(checkpoint: str, desk: AtDesk, who: Who) -> Response:
    """The decoder as ONNX. 409 for another checkpoint's."""
    if desk.encoding is None or desk.encoding.decoder_onnx is None:
        raise HttpError(404, "this server has no decoder for browsers")
    desk.encoding.refuse_another(checkpoint)
    keep = {"Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(desk.encoding.decoder_onnx, media_type="application/octet-stream", headers=keep)


@api.post("/next")
def next_task(desk: AtDesk, who: Who) -> dict[str, Any]:
    """The annotator's next task, leased; {"task": null} when there is none. Pictures that do not decode or
    were taken down are skipped by name."""
    while (task := desk.queue.next(who.name)) is not None:
        try:
            picture = desk.pictures.picture(task.image)
        except HttpError as error:
            why = "taken down" if error.status == GONE else "does not decode"
            desk.queue.skip(task.id, who.name, f"{why}: {error}"[:500])
            continue
        if desk.prefill and picture.record is not None:
            desk.commits.prefill(task.id, [_of_corpus(mask) for mask in picture.record.masks])
        if desk.encoding is not None:
            desk.encoding.ahead([task.image, *desk.queue.ahead(desk.num_ahead)])
        return {"task": _task_json(desk, task), "states": desk.queue.states()}
    return {"task": None, "states": desk.queue.states()}


@api.post("/review/next")
def next_review(desk: AtDesk, who: Who, after: int = 0) -> dict[str, Any]:
    """For reviewers: a finished task of somebody else; first what they are correcting themselves."""
    _only_reviewers(who)
    if (held := desk.queue.held_by(who.name)) is not None:
        return {"task": _task_json(desk, held), "states": desk.queue.states(), "correcting": True}
    task = desk.queue.next_to_review(who.name, after)
    return {"task": None if task is None else _task_json(desk, task), "states": desk.queue.states()}


@api.post("/previous")
def previous(desk: AtDesk, who: Who, before: int | None = None) -> dict[str, Any]:
    """Reopen the task that this annotator ended last (before task `before`)."""
    task = desk.queue.last_of(who.name, before)
    if task is None:
        raise HttpError(404, "you have ended no task before this one")
    return {"task": _task_json(desk, desk.queue.reopen(task.id, who.name)), "states": desk.queue.states()}


@api.get("/tasks/{task}")
def one_task(task: int, desk: AtDesk, who: Who) -> dict[str, Any]:
    """A task of one's own; a reviewer sees every one."""
    return {"task": _task_json(desk, _seen(desk, who, task)), "states": desk.queue.states()}


@api.get("/tasks/{task}/image", response_model=None)
def image(task: int, desk: AtDesk, who: Who) -> Response:
    """The picture, JPEG."""
    picture = desk.pictures.picture(_seen(desk, who, task).image)
    return Response(picture.jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


@api.get("/tasks/{task}/embedding", response_model=None)
def embedding(task: int, checkpoint: str, desk: AtDesk, who: Who) -> Response:
    """Its embedding, float16, shape in X-Shape; 202 while it is made. 409 for another checkpoint than the server's."""
    made = _encoding(desk).embedding(_seen(desk, who, task).image, checkpoint)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    headers = {"X-Shape": ",".join(map(str, made.shape)), "X-Checkpoint": checkpoint}
    return Response(made.numpy().astype("<f2").tobytes(), media_type="application/octet-stream", headers=headers)


@api.post("/tasks/{task}/proposals", response_model=None)
def proposals(task: int, desk: AtDesk, who: Who) -> Response:
    """The task's masks with those that the model proposes, put there once; 202 while they are made."""
    encoding = _encoding(desk)
    if encoding.proposals is None:
        raise HttpError(404, "this server proposes no masks: it was started without generator@proposals=")
    made = encoding.proposed(_seen(desk, who, task).image)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    desk.queue.renew(task, who.name)
    desk.commits.prefill(task, [_of_model(mask, encoding.checkpoint) for mask in made])
    return JSONResponse({"masks": desk.commits.of_task(task)})


@api.post("/tasks/{task}/decode", response_model=None)
def decode(task: int, message: DecodeMessage, desk: AtDesk, who: Who) -> Response:
    """Logits (float16, shape in X-Shape, estimated IoUs in X-Iou-Scores) for a prompt, where the page does not decode."""
    encoding, found = _encoding(desk), _seen(desk, who, task)
    made = encoding.embedding(found.image, message.checkpoint)
    if made is None:
        return JSONResponse({"state": "is made"}, 202, {"Retry-After": "1"})
    picture = desk.pictures.picture(found.image)
    answer = encoding.decode(
        made,
        (picture.height, picture.width),
        message.prompts,
        mask_logits=message.logits(encoding.model.logits_size),
        multimask_output=message.multimask_output,
    )
    low = answer.mask_logits[0].clamp(-60000, 60000).numpy().astype("<f2")
    scores = ",".join(f"{float(score):.6g}" for score in np.atleast_1d(answer.iou_scores[0].numpy()))
    headers = {"X-Shape": ",".join(map(str, low.shape)), "X-Iou-Scores": scores}
    return Response(low.tobytes(), media_type="application/octet-stream", headers=headers)


@api.put("/commits/{commit}")
def put_commit(commit: UUID, message: CommitMessage, desk: AtDesk, who: Who) -> dict[str, Any]:
    """Write or delete a mask. The same request again answers the same and changes nothing."""
    common = {"task": message.task, "mask": str(message.mask), "annotator": who.name}
    if message.kind == "delete":
        new = desk.commits.delete(str(commit), **common)  # type: ignore[arg-type]
        return {"commit": str(commit), "new": new}
    picture = desk.pictures.picture(_seen(desk, who, message.task).image)
    if message.checkpoint and desk.encoding is not None:
        desk.encoding.refuse_another(message.checkpoint)
    size = (picture.height, picture.width)
    new = desk.commits.put(str(commit), **common, work=message.work(), image_hw=size)  # type: ignore[arg-type]
    return {"commit": str(commit), "new": new}


@api.post("/tasks/{task}/alive")
def alive(task: int, message: AliveMessage, desk: AtDesk, who: Who) -> dict[str, Any]:
    """The annotator is still there: the lease goes on."""
    desk.queue.renew(task, who.name, message.seconds)
    return {"lease_s": desk.queue.lease_s}


@api.post("/tasks/{task}/done")
def done(task: int, desk: AtDesk, who: Who) -> dict[str, Any]:
    """Finished."""
    desk.queue.done(task, who.name)
    return {"states": desk.queue.states()}


@api.post("/tasks/{task}/skip")
def skip(task: int, message: SkipMessage, desk: AtDesk, who: Who) -> dict[str, Any]:
    """Not to be annotated, and why."""
    desk.queue.skip(task, who.name, message.reason)
    return {"states": desk.queue.states()}


@api.post("/tasks/{task}/reopen")
def reopen(task: int, desk: AtDesk, who: Who) -> dict[str, Any]:
    """Go on with a finished or skipped task of one's own."""
    return {"task": _task_json(desk, desk.queue.reopen(task, who.name)), "states": desk.queue.states()}


@api.post("/tasks/{task}/review")
def review(task: int, message: ReviewMessage, desk: AtDesk, who: Who) -> dict[str, Any]:
    """For reviewers: accept, or send back with a note."""
    _only_reviewers(who)
    desk.queue.review(task, who.name, accept=message.accept, note=message.note)
    return {"states": desk.queue.states()}


@api.post("/tasks/{task}/take-over")
def take_over(task: int, desk: AtDesk, who: Who) -> dict[str, Any]:
    """For reviewers: correct a finished task themselves."""
    _only_reviewers(who)
    return {"task": _task_json(desk, desk.queue.take_over(task, who.name)), "states": desk.queue.states(), "correcting": True}


@api.get("/summary")
def numbers(desk: AtDesk, who: Who) -> dict[str, Any]:
    """What masks cost; an annotator sees their own rows, a reviewer all."""
    found = summary(desk.queue.database)
    if who.role != "reviewer":
        return {"annotators": [row for row in found["annotators"] if row["annotator"] == who.name]}
    return {**found, "states": desk.queue.states()}


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


def _encoding(desk: AppContext) -> EmbeddingService:
    if desk.encoding is None:
        raise HttpError(404, "this server has no model: masks are drawn")
    return desk.encoding


def _only_reviewers(who: User) -> None:
    if who.role != "reviewer":
        raise HttpError(403, f"{who.name} is no reviewer")


def _seen(desk: AppContext, who: User, task: int) -> Task:
    found = desk.queue.task(task)
    if found.annotator != who.name and who.role != "reviewer":
        raise HttpError(403, f"task {task} is not yours")
    return found


def _task_json(desk: AppContext, task: Task) -> dict[str, Any]:
    picture = desk.pictures.picture(task.image)
    return {
        "id": task.id,
        "image": task.image,
        "origin": desk.pictures.references[task.image].origin,
        "height": picture.height,
        "width": picture.width,
        "state": task.state,
        "note": task.note,
        "annotator": task.annotator,
        "masks": desk.commits.of_task(task.id),
    }
