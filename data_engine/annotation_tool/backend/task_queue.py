"""The task queue. A task is one annotator's pass over one image; at most one annotator has it at a time.

    queued --next--> leased --done--> done --review--> accepted
                     leased --skip--> skipped           sent_back --next--> leased, by the same annotator
                     done, skipped --reopen--> leased
                     done --claim for correction--> leased, by a reviewer

A lease expires `lease_s` after its last renewal; the next annotator who requests a task then gets it with the masks it has.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.sources import ImageReference

SKIP_REASONS = ("nothing to annotate", "too hard", "bad image", "not allowed", "other")

_SELECT_FREE_TASK = """
    SELECT t.id FROM tasks t WHERE (t.state = 'queued' OR (t.state = 'leased' AND t.lease_ends < :now))
    AND NOT EXISTS (SELECT 1 FROM tasks o WHERE o.image = t.image AND o.id != t.id AND o.annotator = :annotator)
    ORDER BY t.position, t.pass LIMIT 1
"""
_SELECT_OWN_TASK = """
    SELECT id FROM tasks WHERE annotator = ? AND state IN ('leased', 'sent_back')
    ORDER BY state = 'sent_back', position LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row of the table `tasks`."""

    id: int
    image: str
    """Key of the image."""
    pass_index: int
    """Index of this pass among the `overlap` passes over the image."""
    state: str
    annotator: str | None
    lease_ends: float | None
    """Seconds since 1970."""
    reason: str
    """Reason of a skip."""
    note: str
    """A reviewer's note."""


class TaskQueue:
    """Assigns tasks by leases of `lease_s` seconds. `now` returns the time in seconds since 1970."""

    def __init__(self, database: Database, *, lease_s: float, now: Callable[[], float] = time.time) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0")
        self.database, self.lease_s, self.now = database, lease_s, now

    def add_images(self, references: Sequence[ImageReference], *, overlap: int) -> int:
        """Append images that the queue does not have yet, with `overlap` tasks each, and return their number."""
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}: expected at least 1")
        with self.database.transaction() as db:
            existing = {row[0] for row in db.execute("SELECT key FROM images")}
            new = [reference for reference in references if reference.key not in existing]
            for position, reference in enumerate(new, len(existing)):
                row = (reference.key, reference.image_id, position, reference.origin)
                db.execute("INSERT INTO images (key, image_id, position, origin) VALUES (?, ?, ?, ?)", row)
            db.execute(
                """WITH RECURSIVE passes (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM passes WHERE n + 1 < ?)
                INSERT OR IGNORE INTO tasks (image, pass, position)
                SELECT i.key, n, i.position FROM images i, passes WHERE i.shard IS NULL""",
                (overlap,),
            )
        return len(new)

    def next(self, annotator: str) -> Task | None:
        """Lease the annotator's next task and return it; None if no task is left for this annotator.

        Order: the task that the annotator has leased already, a task that was sent back to them, the first free task.
        """
        with self.database.transaction() as db:
            row = db.execute(_SELECT_OWN_TASK, (annotator,)).fetchone()
            row = row or db.execute(_SELECT_FREE_TASK, {"now": self.now(), "annotator": annotator}).fetchone()
            if row is None:
                return None
            task = read_task(db, row[0])
            self._lease(db, task, annotator)
            return read_task(db, task.id)

    def upcoming_images(self, num: int) -> list[str]:
        """Return the keys of the next `num` images that no annotator has."""
        rows = self.database.connection.execute(
            "SELECT DISTINCT image FROM tasks WHERE state = 'queued' ORDER BY position, pass LIMIT ?", (num,)
        )
        return [row[0] for row in rows]

    def task(self, task: int) -> Task:
        """Return a task by id. Raises HttpError (404) if there is none."""
        return read_task(self.database.connection, task)

    def renew_lease(self, task: int, annotator: str, seconds: float = 0.0) -> None:
        """Extend the lease and add `seconds` of work time to the task. Raises the errors of `require_lease`."""
        with self.database.transaction() as db:
            self.require_lease(db, task, annotator)
            db.execute("UPDATE tasks SET seconds = seconds + ? WHERE id = ?", (seconds, task))

    def require_lease(self, db: sqlite3.Connection, task: int, annotator: str) -> Task:
        """Check, inside a transaction, that the annotator has the task, and extend the lease to `lease_s` from now.

        An expired lease that no other annotator took over is still valid. Raises HttpError: 404 if there is no such task, 403 if
        another annotator has it, 409 if it is not leased.
        """
        current = read_task(db, task)
        if current.annotator != annotator:
            raise HttpError(403, f"task {task} is not yours any more (your lease expired): take the next one")
        if current.state != "leased":
            raise HttpError(409, f"task {task} is {current.state}: reopen it to continue")
        db.execute("UPDATE tasks SET lease_ends = ? WHERE id = ?", (self.now() + self.lease_s, task))
        return current

    def done(self, task: int, annotator: str) -> None:
        """Mark a task as done; proposed masks that were not reviewed are not exported. Raises the errors of `require_lease`."""
        self._end(task, annotator, "done", "")

    def skip(self, task: int, annotator: str, reason: str) -> None:
        """Skip a task. Raises HttpError (422) without a reason, and the errors of `require_lease`."""
        if not reason.strip():
            raise HttpError(422, f"a skip needs a reason, such as {', '.join(SKIP_REASONS)}")
        self._end(task, annotator, "skipped", reason.strip())

    def _end(self, task: int, annotator: str, state: str, reason: str) -> None:
        with self.database.transaction() as db:
            current = read_task(db, task)
            if (current.annotator, current.state, current.reason) == (annotator, state, reason):
                return  # the request was sent again because its response was lost
            self.require_lease(db, task, annotator)
            values = (state, reason, self.now(), task)
            db.execute("UPDATE tasks SET state = ?, reason = ?, ended = ?, lease_ends = NULL WHERE id = ?", values)
            self._log_event(db, annotator, task, state, reason)

    def reopen(self, task: int, annotator: str) -> Task:
        """Lease the annotator's own done or skipped task again.

        Raises HttpError: 403 for another annotator's task, 404, 409 if it was accepted or exported.
        """
        with self.database.transaction() as db:
            current = read_task(db, task)
            if current.annotator != annotator:
                raise HttpError(403, f"task {task} is not yours")
            if current.state not in ("done", "skipped", "sent_back", "leased"):
                raise HttpError(409, f"task {task} is {current.state} and cannot be reopened: ask a reviewer to send it back")
            self._check_not_exported(db, current)
            self._lease(db, current, annotator)
            return read_task(db, task)

    def review(self, task: int, reviewer: str, *, accept: bool, note: str) -> None:
        """Accept a done task, or send it back to its annotator with a note. Raises HttpError (404, 409)."""
        state = "accepted" if accept else "sent_back"
        with self.database.transaction() as db:
            current = read_task(db, task)
            if current.state == state and current.note == note:
                return
            if current.state not in ("done", "accepted"):
                raise HttpError(409, f"task {task} is {current.state}: only a task that is done can be reviewed")
            if not accept:
                self._check_not_exported(db, current)
            db.execute("UPDATE tasks SET state = ?, note = ?, reviewer = ? WHERE id = ?", (state, note, reviewer, task))
            self._log_event(db, reviewer, task, state, note)

    def claim_for_correction(self, task: int, reviewer: str) -> Task:
        """Lease a done task to a reviewer who corrects it; the masks keep their annotators.

        Raises HttpError: 404, or 409 if the task is not done, was exported, or the reviewer has another task of the same image.
        """
        with self.database.transaction() as db:
            current = read_task(db, task)
            if (current.state, current.annotator) == ("leased", reviewer):
                return current  # the request was sent again because its response was lost
            if current.state not in ("done", "accepted"):
                raise HttpError(409, f"task {task} is {current.state}: only a task that is done can be reviewed")
            self._check_not_exported(db, current)
            query = "SELECT 1 FROM tasks WHERE image = ? AND annotator = ? AND id != ?"
            if db.execute(query, (current.image, reviewer, task)).fetchone():
                message = f"you have another task of image {current.image}: send task {task} back to {current.annotator}"
                raise HttpError(409, message)
            self._lease(db, current, reviewer)
            return read_task(db, task)

    def leased_by(self, name: str) -> Task | None:
        """Return the task that a user has leased, None if there is none."""
        return self._first("SELECT id FROM tasks WHERE annotator = ? AND state = 'leased'", (name,))

    def next_for_review(self, reviewer: str, after: int = 0) -> Task | None:
        """Return the first done task after task `after` (cyclic in order of ids) that is not the reviewer's own."""
        query = "SELECT id FROM tasks WHERE state = 'done' AND annotator != ? ORDER BY id <= ?, id LIMIT 1"
        return self._first(query, (reviewer, after))

    def last_ended_by(self, annotator: str, before: int | None = None) -> Task | None:
        """Return the task that this annotator ended last, or last before task `before`."""
        query = """SELECT id FROM tasks WHERE annotator = ?1 AND state IN ('done', 'skipped')
            AND ended < coalesce((SELECT ended FROM tasks WHERE id = ?2), 9e99) ORDER BY ended DESC LIMIT 1"""
        return self._first(query, (annotator, before))

    def count_by_state(self) -> dict[str, int]:
        """Return the number of tasks in each state."""
        return dict(map(tuple, self.database.connection.execute("SELECT state, count(*) FROM tasks GROUP BY state")))

    def _first(self, query: str, values: tuple[object, ...]) -> Task | None:
        row = self.database.connection.execute(query, values).fetchone()
        return None if row is None else self.task(row[0])

    def _lease(self, db: sqlite3.Connection, task: Task, annotator: str) -> None:
        values = (annotator, self.now() + self.lease_s, task.id)
        db.execute("UPDATE tasks SET state = 'leased', annotator = ?, lease_ends = ?, reason = '' WHERE id = ?", values)
        if (task.state, task.annotator) != ("leased", annotator):
            self._log_event(db, annotator, task.id, "leased", task.annotator or "")

    def _check_not_exported(self, db: sqlite3.Connection, task: Task) -> None:
        (shard,) = db.execute("SELECT shard FROM images WHERE key = ?", (task.image,)).fetchone()
        if shard is not None:
            raise HttpError(409, f"task {task.id} was exported already (shard {shard}) and cannot be changed")

    def _log_event(self, db: sqlite3.Connection, annotator: str, task: int, kind: str, detail: str) -> None:
        row = (self.now(), annotator, task, kind, detail)
        db.execute("INSERT INTO events (at, annotator, task, kind, detail) VALUES (?, ?, ?, ?, ?)", row)


def read_task(db: sqlite3.Connection, task: int) -> Task:
    """Return a task by id. Raises HttpError (404) if there is none."""
    row = db.execute("SELECT * FROM tasks WHERE id = ?", (task,)).fetchone()
    if row is None:
        raise HttpError(404, f"there is no task {task}")
    return Task(
        id=row["id"], image=row["image"], pass_index=row["pass"], state=row["state"], annotator=row["annotator"],
        lease_ends=row["lease_ends"], reason=row["reason"], note=row["note"],
    )  # fmt: skip
