"""Masks of tasks. Each change is one request with an id that the client generates: repeating the request changes nothing."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from pycocotools import mask as coco_mask

from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.task_queue import TaskQueue
from sam_train.errors import ShardError
from sam_train.records import Rle
from sam_train.rle import decode_rle, encode_rle, rle_area
from sam_train.structures import PointLabel

MAX_MASKS_PER_TASK = 5_000
MAX_SECONDS = 86_400.0
DUPLICATE_IOU = 0.5
"""A mask is not proposed if its IoU with one of the annotator's masks is at least this."""
_UPSERT = """ON CONFLICT (id) DO UPDATE SET counts = excluded.counts, area = excluded.area, origin = excluded.origin,
    predicted_iou = excluded.predicted_iou, stability_score = excluded.stability_score, prompts = excluded.prompts,
    clicks = clicks + excluded.clicks, strokes = strokes + excluded.strokes, seconds = seconds + excluded.seconds,
    wall_seconds = wall_seconds + excluded.wall_seconds, checkpoint = excluded.checkpoint,
    annotator = excluded.annotator, at = excluded.at, deleted = 0, revisions = revisions + 1"""
"""Replaces a mask by its new version. Clicks, strokes and times add up: the cost of a mask is that of all its versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedMask:
    """A mask as an annotator made it, and its cost."""

    rle: Rle
    origin: str
    """accepted, edited, clicked or drawn."""
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    prompts: list[list[float]] = field(default_factory=list)
    """[x, y, label] each, in the image frame, labels as PointLabel."""
    clicks: int = 0
    strokes: int = 0
    seconds: float = 0.0
    """Work time, without idle time."""
    wall_seconds: float = 0.0
    """Time with idle time."""
    checkpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedMask(AnnotatedMask):
    """A mask that is proposed to an annotator."""

    origin: str = "proposed"
    name: str = ""
    """Text prompt that found the mask, or its name in the corpus. It stays with the mask when the mask is edited."""


class MaskStore:
    """Reads and writes the masks of tasks; `queue` decides who may change a task."""

    def __init__(self, database: Database, queue: TaskQueue) -> None:
        self.database, self.queue = database, queue

    def put(
        self, commit: str, *, task: int, mask: str, annotated: AnnotatedMask, annotator: str, image_hw: tuple[int, int]
    ) -> bool:
        """Write a new mask, or a new version of one; return False if this commit was applied before.

        commit, mask: UUIDs that the client generates. Raises HttpError: 409 if the commit id was used for another content, 422
        for a mask that is invalid for this image, and the errors of `TaskQueue.require_lease`.
        """
        validate_mask(annotated, image_hw)
        digest = _digest({"task": task, "mask": mask, "work": asdict(annotated)})
        with self.database.transaction() as db:
            if self._is_applied(db, commit, digest):
                return False
            self.queue.require_lease(db, task, annotator)
            self._write(db, task, mask, annotated, annotator)
            self._record_commit(db, (commit, mask, task, annotator, "put", digest))
        return True

    def delete(self, commit: str, *, task: int, mask: str, annotator: str) -> bool:
        """Mark a mask as deleted (its row stays); return False if this commit was applied before.

        Raises HttpError: 404 if the task has no such mask, and the errors of `put`.
        """
        digest = _digest({"task": task, "mask": mask})
        with self.database.transaction() as db:
            if self._is_applied(db, commit, digest):
                return False
            self.queue.require_lease(db, task, annotator)
            query = "UPDATE masks SET deleted = 1, at = ? WHERE id = ? AND task = ?"
            if not db.execute(query, (self.queue.now(), mask, task)).rowcount:
                raise HttpError(404, f"task {task} has no mask {mask}")
            self._record_commit(db, (commit, mask, task, annotator, "delete", digest))
        return True

    def add_proposals(self, task: int, masks: Sequence[ProposedMask]) -> None:
        """Propose masks to the annotator, once per task, without duplicates of masks that the annotator has made already."""
        with self.database.transaction() as db:
            if db.execute("SELECT 1 FROM masks WHERE task = ? AND proposed IS NOT NULL", (task,)).fetchone():
                return
            existing = [_rle(row) for row in db.execute("SELECT * FROM masks WHERE task = ? AND NOT deleted", (task,))]
            for mask in masks:
                if existing and coco_mask.iou([mask.rle], existing, [0] * len(existing)).max() >= DUPLICATE_IOU:
                    continue
                self._write(db, task, str(uuid.uuid4()), mask, "")

    def list_masks(self, task: int) -> list[dict[str, object]]:
        """Return the masks of a task that are not deleted, in order of creation."""
        query = "SELECT * FROM masks WHERE task = ? AND NOT deleted ORDER BY number"
        return [mask_json(row) for row in self.database.connection.execute(query, (task,))]

    def _write(self, db: sqlite3.Connection, task: int, mask: str, annotated: AnnotatedMask, annotator: str) -> None:
        previous = db.execute("SELECT * FROM masks WHERE id = ?", (mask,)).fetchone()
        if previous is not None and previous["task"] != task:
            raise HttpError(409, f"mask {mask} belongs to another task")
        if annotated.origin == "accepted":
            annotated = _check_accepted(mask, annotated, previous)
        (number,) = db.execute("SELECT coalesce(max(number) + 1, 0) FROM masks WHERE task = ?", (task,)).fetchone()
        if number >= MAX_MASKS_PER_TASK:
            raise HttpError(409, f"task {task} has {MAX_MASKS_PER_TASK} masks, the maximum")
        height, width = annotated.rle["size"]
        is_proposal = isinstance(annotated, ProposedMask)
        proposed, name = (annotated.rle["counts"], annotated.name) if is_proposal else (None, "")  # type: ignore[attr-defined]
        values = {
            "id": mask, "task": task, "number": number, "counts": annotated.rle["counts"], "height": height, "width": width,
            "area": rle_area(annotated.rle), "origin": annotated.origin, "proposed": proposed, "name": name,
            "predicted_iou": annotated.predicted_iou, "stability_score": annotated.stability_score,
            "prompts": json.dumps(annotated.prompts), "clicks": annotated.clicks, "strokes": annotated.strokes,
            "seconds": annotated.seconds, "wall_seconds": annotated.wall_seconds,
            "checkpoint": annotated.checkpoint, "annotator": annotator, "at": self.queue.now(),
        }  # fmt: skip
        placeholders = ", ".join(f":{name}" for name in values)
        db.execute(f"INSERT INTO masks ({', '.join(values)}) VALUES ({placeholders}) {_UPSERT}", values)  # noqa: S608

    def _is_applied(self, db: sqlite3.Connection, commit: str, digest: str) -> bool:
        row = db.execute("SELECT sha256 FROM commits WHERE id = ?", (commit,)).fetchone()
        if row is not None and row[0] != digest:
            raise HttpError(409, f"commit {commit} was made before with another content: use a new id for each commit")
        return row is not None

    def _record_commit(self, db: sqlite3.Connection, row: tuple[str, str, int, str, str, str]) -> None:
        columns = "(id, mask, task, annotator, kind, sha256, at)"
        db.execute(f"INSERT INTO commits {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, self.queue.now()))  # noqa: S608


def _check_accepted(mask: str, annotated: AnnotatedMask, previous: sqlite3.Row | None) -> AnnotatedMask:
    """Return an accepted mask with the scores and prompts of its proposal. Raises HttpError (422) if it is not the proposal."""
    if previous is None or previous["proposed"] is None:
        raise HttpError(422, f"mask {mask} was not proposed: it can be clicked or drawn, not accepted")
    if previous["proposed"] != annotated.rle["counts"]:
        raise HttpError(422, f"mask {mask} differs from the proposed one: it was edited, not accepted")
    if previous["origin"] != "proposed":
        return annotated
    scores = {name: previous[name] for name in ("predicted_iou", "stability_score", "checkpoint")}
    return replace(annotated, **scores, prompts=json.loads(previous["prompts"]))


def validate_mask(annotated: AnnotatedMask, image_hw: tuple[int, int]) -> None:
    """Raise HttpError (422) unless the mask fits an image of this size and its values are in range."""
    height, width = image_hw
    try:
        mask = decode_rle(annotated.rle, height=height, width=width)
    except ShardError as error:
        raise HttpError(422, str(error)) from error
    if not mask.any():
        raise HttpError(422, "the mask is empty")
    if encode_rle(mask)["counts"] != annotated.rle["counts"]:
        raise HttpError(422, "the RLE is not in its shortest form (it has runs of length 0, or adjacent runs of one value)")
    if annotated.origin not in ("accepted", "edited", "clicked", "drawn"):
        raise HttpError(422, f"origin is {annotated.origin!r}: expected accepted, edited, clicked or drawn")
    for name in ("predicted_iou", "stability_score", "seconds", "wall_seconds"):
        if not math.isfinite(getattr(annotated, name)):
            raise HttpError(422, f"{name} is {getattr(annotated, name)}: expected a finite number")
    if not 0 <= annotated.seconds <= annotated.wall_seconds + 1 <= MAX_SECONDS:
        expected = f"0 <= seconds <= wall_seconds + 1 <= {MAX_SECONDS:g}"
        raise HttpError(422, f"seconds is {annotated.seconds}, wall_seconds {annotated.wall_seconds}: expected {expected}")
    labels = {PointLabel.BACKGROUND, PointLabel.FOREGROUND, PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT}
    for x, y, label in annotated.prompts:
        if label not in labels or not (0 <= x <= width and 0 <= y <= height):
            raise HttpError(422, f"prompt {[x, y, label]} is outside the image of {width} x {height} or has an invalid label")


def mask_json(row: sqlite3.Row) -> dict[str, object]:
    """Return a row of the table `masks` as the JSON object that the API sends."""
    return {
        "mask": row["id"], "number": row["number"], "name": row["name"], "origin": row["origin"], "area": row["area"],
        "rle": _rle(row), "predicted_iou": row["predicted_iou"],
        "prompts": json.loads(row["prompts"]), "seconds": row["seconds"], "clicks": row["clicks"],
        "strokes": row["strokes"], "annotator": row["annotator"],
    }  # fmt: skip


def _rle(row: sqlite3.Row) -> Rle:
    return {"size": [row["height"], row["width"]], "counts": row["counts"]}


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
