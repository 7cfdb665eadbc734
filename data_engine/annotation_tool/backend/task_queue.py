"""The queue: a task is one annotator's pass over one image, and has at most one annotator at a time.

    queued --next--> leased --done--> done --review--> accepted
                     leased --skip--> skipped           sent_back --next--> leased, of the same annotator
                     done, skipped --reopen--> leased
                     done --take over--> leased, of a reviewer

A lease ends by itself when nothing is heard for `lease_s`; whoever comes next gets the task with the masks that are there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.sources import ImageReference

SKIP_REASONS = ("nothing to annotate", "too hard", "bad picture", "not allowed", "other")

_FREE = """
    SELECT t.id FROM tasks t WHERE (t.state = 'queued' OR (t.state = 'leased' AND t.lease_ends < :now))
    AND NOT EXISTS (SELECT 1 FROM tasks o WHERE o.image = t.image AND o.id != t.id AND o.annotator = :annotator)
    ORDER BY t.position, t.pass LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row of `tasks`."""

    id: int
    image: str
    number: int
    state: str
    annotator: str | None
    lease_ends: float | None
    reason: str
    note: str


class TaskQueue:
    """Leases of `lease_s` seconds. `now` is the clock, in seconds since 1970."""

    def __init__(self, database: Database, *, lease_s: float, now: Callable[[], float] = time.time) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s is {lease_s}: expected more than 0")
        self.database, self.lease_s, self.now = database, lease_s, now

    def add_images(self, references: Sequence[ImageReference], *, overlap: int) -> int:
        """Put images that are not there yet at the end, `overlap` tasks each; how many were new."""
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}: expected at least 1")
        with self.database.transaction() as db:
            there = {row[0] for row in db.execute("SELECT key FROM images")}
            new = [reference for reference in references if reference.key not in there]
            for position, reference in enumerate(new, len(there)):
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
        """What the annotator has already, else what came back to them, else the first task that is free; leased from now.

        None when there is nothing left for this annotator.
        """
        with self.database.transaction() as db:
            now = self.now()
            found = (
                db.execute(
                    """SELECT id FROM tasks WHERE annotator = ? AND state IN ('leased', 'sent_back')
                ORDER BY state = 'sent_back', position LIMIT 1""",
                    (annotator,),
                ).fetchone()
                or db.execute(_FREE, {"now": now, "annotator": annotator}).fetchone()
            )
            if found is None:
                return None
            before = read_task(db, found[0])
            self._lease(db, before, annotator)
            return read_task(db, before.id)

    def upcoming_images(self, num: int) -> list[str]:
        """Keys of the next `num` images that nobody has."""
        rows = self.database.connection.execute(
            "SELECT DISTINCT image FROM tasks WHERE state = 'queued' ORDER BY position, pass LIMIT ?", (num,)
        )
        return [row[0] for row in rows]

    def task(self, task: int) -> Task:
        """Raises HttpError (404)."""
        return read_task(self.database.connection, task)

    def renew_lease(self, task: int, annotator: str, seconds: float = 0.0) -> None:
        """The annotator is still there and worked for `seconds` since the last word. Raises HttpError as `held`."""
        with self.database.transaction() as db:
            self.require_lease(db, task, annotator)
            db.execute("UPDATE tasks SET seconds = seconds + ? WHERE id = ?", (seconds, task))

    def require_lease(self, db: sqlite3.Connection, task: int, annotator: str) -> Task:
        """Inside a transaction: the task is this annotator's and stays so for `lease_s` from now.

        A lease that ended and that nobody took is still theirs. Raises HttpError: 404, 403 of another, 409 not being
        worked on.
        """
        found = read_task(db, task)
        if found.annotator != annotator:
            raise HttpError(403, f"task {task} is not yours any more (nobody heard of you for a while): take the next one")
        if found.state != "leased":
            raise HttpError(409, f"task {task} is {found.state}: reopen it to go on with it")
        db.execute("UPDATE tasks SET lease_ends = ? WHERE id = ?", (self.now() + self.lease_s, task))
        return found

    def done(self, task: int, annotator: str) -> None:
        """Finished; what was proposed and not looked at stays out of what is exported. Raises HttpError as `require_lease`."""
        self._end(task, annotator, "done", "")

    def skip(self, task: int, annotator: str, reason: str) -> None:
        """Not to be annotated, and why. Raises HttpError as `require_lease`, 422 without a reason."""
        if not reason.strip():
            raise HttpError(422, f"a skip needs a reason, such as {', '.join(SKIP_REASONS)}")
        self._end(task, annotator, "skipped", reason.strip())

    def _end(self, task: int, annotator: str, state: str, reason: str) -> None:
        with self.database.transaction() as db:
            found = read_task(db, task)
            if (found.annotator, found.state, found.reason) == (annotator, state, reason):
                return  # asked again because the answer got lost
            self.require_lease(db, task, annotator)
            values = (state, reason, self.now(), task)
            db.execute("UPDATE tasks SET state = ?, reason = ?, ended = ?, lease_ends = NULL WHERE id = ?", values)
            self._log(db, annotator, task, state, reason)

    def reopen(self, task: int, annotator: str) -> Task:
        """Go on with one's own finished or skipped task. Raises HttpError: 403, 404, 409 when it is past that."""
        with self.database.transaction() as db:
            found = read_task(db, task)
            if found.annotator != annotator:
                raise HttpError(403, f"task {task} is not yours")
            if found.state not in ("done", "skipped", "sent_back", "leased"):
                raise HttpError(409, f"task {task} is {found.state} and cannot be reopened: ask a reviewer to send it back")
            self._refuse_exported(db, found)
            self._lease(db, found, annotator)
            return read_task(db, task)

    def review(self, task: int, reviewer: str, *, accept: bool, note: str) -> None:
        """Accept a finished task, or send it back to its annotator with a note. Raises HttpError (404, 409)."""
        state = "accepted" if accept else "sent_back"
        with self.database.transaction() as db:
            found = read_task(db, task)
            if found.state == state and found.note == note:
                return
            if found.state not in ("done", "accepted"):
                raise HttpError(409, f"task {task} is {found.state}: only what is done is reviewed")
            if not accept:
                self._refuse_exported(db, found)
            db.execute("UPDATE tasks SET state = ?, note = ?, reviewer = ? WHERE id = ?", (state, note, reviewer, task))
            self._log(db, reviewer, task, state, note)

    def claim_for_correction(self, task: int, reviewer: str) -> Task:
        """A reviewer corrects a finished task: it is theirs from now, and each mask stays whose it was.

        Raises HttpError: 404, 409 when it is not finished, was exported, or the image's other task is the reviewer's own.
        """
        with self.database.transaction() as db:
            found = read_task(db, task)
            if (found.state, found.annotator) == ("leased", reviewer):
                return found  # asked again because the answer got lost
            if found.state not in ("done", "accepted"):
                raise HttpError(409, f"task {task} is {found.state}: only what is done is reviewed")
            self._refuse_exported(db, found)
            other = "SELECT 1 FROM tasks WHERE image = ? AND annotator = ? AND id != ?"
            if db.execute(other, (found.image, reviewer, task)).fetchone():
                raise HttpError(409, f"another task of image {found.image} is yours: send task {task} back to {found.annotator}")
            self._lease(db, found, reviewer)
            return read_task(db, task)

    def leased_by(self, name: str) -> Task | None:
        """The task that somebody is working on, if any."""
        row = self.database.connection.execute(
            "SELECT id FROM tasks WHERE annotator = ? AND state = 'leased'", (name,)
        ).fetchone()
        return None if row is None else self.task(row[0])

    def next_for_review(self, reviewer: str, after: int = 0) -> Task | None:
        """The first finished task after task `after` (then from the start again) that is not the reviewer's own."""
        row = self.database.connection.execute(
            "SELECT id FROM tasks WHERE state = 'done' AND annotator != ? ORDER BY id <= ?, id LIMIT 1", (reviewer, after)
        ).fetchone()
        return None if row is None else self.task(row[0])

    def last_ended_by(self, annotator: str, before: int | None = None) -> Task | None:
        """The task that this annotator ended last, or the one before `before`."""
        row = self.database.connection.execute(
            """SELECT id FROM tasks WHERE annotator = ?1 AND state IN ('done', 'skipped')
            AND ended < coalesce((SELECT ended FROM tasks WHERE id = ?2), 9e99) ORDER BY ended DESC LIMIT 1""",
            (annotator, before),
        ).fetchone()
        return None if row is None else self.task(row[0])

    def states(self) -> dict[str, int]:
        """Number of tasks in each state."""
        return dict(map(tuple, self.database.connection.execute("SELECT state, count(*) FROM tasks GROUP BY state")))

    def _lease(self, db: sqlite3.Connection, task: Task, annotator: str) -> None:
        values = (annotator, self.now() + self.lease_s, task.id)
        db.execute("UPDATE tasks SET state = 'leased', annotator = ?, lease_ends = ?, reason = '' WHERE id = ?", values)
        if (task.state, task.annotator) != ("leased", annotator):
            self._log(db, annotator, task.id, "leased", task.annotator or "")

    def _refuse_exported(self, db: sqlite3.Connection, task: Task) -> None:
        (shard,) = db.execute("SELECT shard FROM images WHERE key = ?", (task.image,)).fetchone()
        if shard is not None:
            raise HttpError(409, f"task {task.id} was exported already (shard {shard}): it stays as it is")

    def _log(self, db: sqlite3.Connection, annotator: str, task: int, kind: str, detail: str) -> None:
        row = (self.now(), annotator, task, kind, detail)
        db.execute("INSERT INTO events (at, annotator, task, kind, detail) VALUES (?, ?, ?, ?, ?)", row)


def read_task(db: sqlite3.Connection, task: int) -> Task:
    """Raises HttpError (404)."""
    row = db.execute("SELECT * FROM tasks WHERE id = ?", (task,)).fetchone()
    if row is None:
        raise HttpError(404, f"there is no task {task}")
    return Task(
        id=row["id"], image=row["image"], number=row["pass"], state=row["state"], annotator=row["annotator"],
        lease_ends=row["lease_ends"], reason=row["reason"], note=row["note"],
    )  # fmt: skip
