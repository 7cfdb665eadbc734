"""Masks of a task. Each change is one request with an id that the client made: sent again, it changes nothing."""

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
from sam_train.masks import decode_rle, encode_rle, rle_area
from sam_train.records import Rle
from sam_train.structures import PointLabel

MAX_MASKS = 5_000
"""In a task."""
MAX_SECONDS = 86_400.0
SAME_IOU = 0.5
"""A mask that overlaps one of the annotator's so much is not proposed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedMask:
    """A mask as an annotator made it, and what it cost."""

    rle: Rle
    origin: str
    """accepted, edited, clicked or drawn."""
    predicted_iou: float = 1.0
    stability_score: float = 1.0
    prompts: list[list[float]] = field(default_factory=list)
    """[x, y, label] in the image frame, labels as PointLabel."""
    clicks: int = 0
    strokes: int = 0
    seconds: float = 0.0
    """Idle time cut off."""
    wall_seconds: float = 0.0
    """With idle time."""
    checkpoint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedMask(AnnotatedMask):
    """A mask that an annotator is shown."""

    origin: str = "proposed"
    name: str = ""
    """The word that it was found by, or what the corpus calls it. It stays the mask's, whatever becomes of that."""


class MaskStore:
    """Reads and writes masks of tasks that `queue` says are the annotator's."""

    def __init__(self, database: Database, queue: TaskQueue) -> None:
        self.database, self.queue = database, queue

    def put(self, commit: str, *, task: int, mask: str, work: AnnotatedMask, annotator: str, image_hw: tuple[int, int]) -> bool:
        """Write the mask or its new version; False when this commit was there already.

        commit, mask: UUIDs that the client made. Raises HttpError: 409 when the commit's id stands for something else,
        422 for a mask that cannot be one of this image, and as `TaskQueue.require_lease`.
        """
        validate_mask(work, image_hw)
        digest = _digest({"task": task, "mask": mask, "work": asdict(work)})
        with self.database.transaction() as db:
            if self._is_there(db, commit, digest):
                return False
            self.queue.require_lease(db, task, annotator)
            self._write(db, task, mask, work, annotator)
            self._note(db, (commit, mask, task, annotator, "put", digest))
        return True

    def delete(self, commit: str, *, task: int, mask: str, annotator: str) -> bool:
        """Take a mask away, a proposed one too; it stays in the store, marked. False and errors as `put`, 404 too."""
        digest = _digest({"task": task, "mask": mask})
        with self.database.transaction() as db:
            if self._is_there(db, commit, digest):
                return False
            self.queue.require_lease(db, task, annotator)
            transaction = db.execute(
                "UPDATE masks SET deleted = 1, at = ? WHERE id = ? AND task = ?", (self.queue.now(), mask, task)
            )
            if not transaction.rowcount:
                raise HttpError(404, f"task {task} has no mask {mask}")
            self._note(db, (commit, mask, task, annotator, "delete", digest))
        return True

    def add_proposals(self, task: int, masks: Sequence[ProposedMask]) -> None:
        """Show the annotator these masks, once a task; not what they made meanwhile themselves."""
        with self.database.transaction() as db:
            if db.execute("SELECT 1 FROM masks WHERE task = ? AND proposed IS NOT NULL", (task,)).fetchone():
                return
            there = [_rle(row) for row in db.execute("SELECT * FROM masks WHERE task = ? AND NOT deleted", (task,))]
            for work in masks:
                if there and coco_mask.iou([work.rle], there, [0] * len(there)).max() >= SAME_IOU:
                    continue
                self._write(db, task, str(uuid.uuid4()), work, "")

    def list_masks(self, task: int) -> list[dict[str, object]]:
        """The masks that stand, in the order in which they were made."""
        rows = self.database.connection.execute("SELECT * FROM masks WHERE task = ? AND NOT deleted ORDER BY number", (task,))
        return [mask_json(row) for row in rows]

    def _write(self, db: sqlite3.Connection, task: int, mask: str, work: AnnotatedMask, annotator: str) -> None:
        before = db.execute("SELECT * FROM masks WHERE id = ?", (mask,)).fetchone()
        if before is not None and before["task"] != task:
            raise HttpError(409, f"mask {mask} belongs to another task")
        if work.origin == "accepted" and (before is None or before["proposed"] is None):
            raise HttpError(422, f"mask {mask} was not proposed: it can be clicked or drawn, not accepted")
        if work.origin == "accepted" and before["proposed"] != work.rle["counts"]:
            raise HttpError(422, f"mask {mask} is not as it was proposed: it was edited, not accepted")
        if work.origin == "accepted" and before["origin"] == "proposed":  # what the model said of it is still so
            said = {name: before[name] for name in ("predicted_iou", "stability_score", "checkpoint")}
            work = replace(work, **said, prompts=json.loads(before["prompts"]))
        (number,) = db.execute("SELECT coalesce(max(number) + 1, 0) FROM masks WHERE task = ?", (task,)).fetchone()
        if number >= MAX_MASKS:
            raise HttpError(409, f"task {task} has {MAX_MASKS} masks, which is the most")
        height, width = work.rle["size"]
        proposed, name = (work.rle["counts"], work.name) if isinstance(work, ProposedMask) else (None, "")
        values = {
            "id": mask, "task": task, "number": number, "counts": work.rle["counts"], "height": height, "width": width,
            "area": rle_area(work.rle), "origin": work.origin, "proposed": proposed, "name": name,
            "predicted_iou": work.predicted_iou, "stability_score": work.stability_score, "prompts": json.dumps(work.prompts),
            "clicks": work.clicks, "strokes": work.strokes, "seconds": work.seconds, "wall_seconds": work.wall_seconds,
            "checkpoint": work.checkpoint, "annotator": annotator, "at": self.queue.now(),
        }  # fmt: skip
        # What an earlier version cost is not forgotten: the time of a mask is the time of all its versions.
        db.execute(
            f"""INSERT INTO masks ({", ".join(values)}) VALUES ({", ".join(f":{name}" for name in values)})
            ON CONFLICT (id) DO UPDATE SET counts = excluded.counts, area = excluded.area, origin = excluded.origin,
            predicted_iou = excluded.predicted_iou, stability_score = excluded.stability_score, prompts = excluded.prompts,
            clicks = clicks + excluded.clicks, strokes = strokes + excluded.strokes, seconds = seconds + excluded.seconds,
            wall_seconds = wall_seconds + excluded.wall_seconds, checkpoint = excluded.checkpoint,
            annotator = excluded.annotator, at = excluded.at, deleted = 0, revisions = revisions + 1""",  # noqa: S608
            values,
        )

    def _is_there(self, db: sqlite3.Connection, commit: str, digest: str) -> bool:
        found = db.execute("SELECT sha256 FROM commits WHERE id = ?", (commit,)).fetchone()
        if found is not None and found[0] != digest:
            raise HttpError(409, f"commit {commit} was made before with another content: a commit needs an id of its own")
        return found is not None

    def _note(self, db: sqlite3.Connection, row: tuple[str, str, int, str, str, str]) -> None:
        columns = "(id, mask, task, annotator, kind, sha256, at)"
        db.execute(f"INSERT INTO commits {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, self.queue.now()))  # noqa: S608


def validate_mask(work: AnnotatedMask, image_hw: tuple[int, int]) -> None:
    """Raise HttpError (422) unless the mask is one of an image of this size and its numbers can be true."""
    height, width = image_hw
    try:
        mask = decode_rle(work.rle, height=height, width=width)
    except ShardError as error:
        raise HttpError(422, str(error)) from error
    if not mask.any():
        raise HttpError(422, "the mask is empty")
    if encode_rle(mask)["counts"] != work.rle["counts"]:
        raise HttpError(422, "the RLE is not in its shortest form (runs of length 0 inside, or a run cut in two)")
    if work.origin not in ("accepted", "edited", "clicked", "drawn"):
        raise HttpError(422, f"origin is {work.origin!r}: expected accepted, edited, clicked or drawn")
    for name in ("predicted_iou", "stability_score", "seconds", "wall_seconds"):
        if not math.isfinite(getattr(work, name)):
            raise HttpError(422, f"{name} is {getattr(work, name)}")
    if not 0 <= work.seconds <= work.wall_seconds + 1 <= MAX_SECONDS:
        raise HttpError(422, f"{work.seconds} s of work in {work.wall_seconds} s cannot be")
    labels = {PointLabel.BACKGROUND, PointLabel.FOREGROUND, PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT}
    for x, y, label in work.prompts:
        if label not in labels or not (0 <= x <= width and 0 <= y <= height):
            raise HttpError(422, f"prompt {[x, y, label]} is not in the image of {width} x {height} or has no such label")


def mask_json(row: sqlite3.Row) -> dict[str, object]:
    """A mask as the page gets it."""
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
