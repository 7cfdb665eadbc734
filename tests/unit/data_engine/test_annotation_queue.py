"""An image is with one annotator at a time, however many ask at once; leases end; nobody sees an image twice; what is done,
skipped and reviewed goes the way that queue.py draws."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.http_errors import HttpError
from data_engine.annotation_tool.backend.mask_store import MaskStore, ProposedMask
from data_engine.annotation_tool.backend.task_queue import Task, TaskQueue
from data_engine.sources import ImageReference
from sam_train.errors import ConfigError
from sam_train.masks import encode_rle

LEASE_S = 100.0


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "store.sqlite")


def references(num: int) -> list[ImageReference]:
    return [ImageReference(key=f"k{i}", image_id=i, path=Path(f"k{i}.jpg"), origin=f"k{i}.jpg") for i in range(num)]


def filled(database: Database, clock: Clock, num: int = 3, overlap: int = 1) -> TaskQueue:
    queue = TaskQueue(database, lease_s=LEASE_S, now=clock)
    queue.add_images(references(num), overlap=overlap)
    return queue


def taken(queue: TaskQueue, annotator: str) -> Task:
    task = queue.next(annotator)
    assert task is not None
    return task


def test_each_gets_an_image_of_their_own_and_keeps_it(database: Database, clock: Clock) -> None:
    queue = filled(database, clock)
    ann, bob = taken(queue, "ann"), taken(queue, "bob")
    assert (ann.image, bob.image) == ("k0", "k1")
    assert taken(queue, "ann").id == ann.id, "a page that is loaded again goes on with its image"
    queue.done(ann.id, "ann")
    assert taken(queue, "ann").image == "k2"
    assert queue.next("eve") is None
    assert queue.count_by_state() == {"done": 1, "leased": 2}


def test_twenty_at_once_never_get_the_same(database: Database) -> None:
    queue = TaskQueue(database, lease_s=LEASE_S)
    queue.add_images(references(60), overlap=1)
    found: list[str] = []

    def work(annotator: str) -> None:
        while (task := queue.next(annotator)) is not None:
            found.append(task.image)
            queue.done(task.id, annotator)

    threads = [threading.Thread(target=work, args=(f"a{i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(reference.key for reference in references(60))


def test_overlap_gives_an_image_to_two_and_to_nobody_twice(database: Database, clock: Clock) -> None:
    queue = filled(database, clock, num=2, overlap=2)
    seen = {"ann": list[str](), "bob": list[str](), "eve": list[str]()}
    for _ in range(2):
        for annotator, images in seen.items():
            if (task := queue.next(annotator)) is not None:
                images.append(task.image)
                queue.done(task.id, annotator)
    assert sorted(image for images in seen.values() for image in images) == ["k0", "k0", "k1", "k1"]
    assert all(len(set(images)) == len(images) for images in seen.values())


def test_a_lease_that_ends_goes_to_the_next_and_the_first_is_told(database: Database, clock: Clock) -> None:
    queue = filled(database, clock, num=1)
    task = taken(queue, "ann")
    clock.now += LEASE_S - 1
    queue.renew_lease(task.id, "ann", seconds=3.0)
    clock.now += LEASE_S - 1
    assert queue.next("bob") is None
    clock.now += 2
    assert taken(queue, "bob").id == task.id
    with pytest.raises(HttpError, match="not yours any more") as error:
        queue.done(task.id, "ann")
    assert error.value.status == 403
    queue.done(task.id, "bob")


def test_a_lease_that_ended_and_that_nobody_took_is_still_theirs(database: Database, clock: Clock) -> None:
    queue = filled(database, clock, num=1)
    task = taken(queue, "ann")
    clock.now += 10 * LEASE_S
    queue.renew_lease(task.id, "ann")
    assert queue.next("bob") is None


def test_done_twice_is_done_once(database: Database, clock: Clock) -> None:
    queue = filled(database, clock)
    task = taken(queue, "ann")
    queue.done(task.id, "ann")
    queue.done(task.id, "ann")
    assert [row[0] for row in database.connection.execute("SELECT kind FROM events")] == ["leased", "done"]


def test_skip_wants_a_reason_and_both_can_be_reopened(database: Database, clock: Clock) -> None:
    queue = filled(database, clock)
    first = taken(queue, "ann")
    with pytest.raises(HttpError, match="needs a reason"):
        queue.skip(first.id, "ann", "  ")
    queue.skip(first.id, "ann", "too hard")
    assert queue.task(first.id).reason == "too hard"
    clock.now += 1
    second = taken(queue, "ann")
    queue.done(second.id, "ann")
    last = queue.last_ended_by("ann")
    assert last is not None
    assert last.id == second.id
    before = queue.last_ended_by("ann", last.id)
    assert before is not None
    assert before.id == first.id
    assert queue.reopen(first.id, "ann").state == "leased"
    with pytest.raises(HttpError, match="not yours"):
        queue.reopen(second.id, "bob")


def test_review_accepts_or_sends_back_to_the_same_annotator(database: Database, clock: Clock) -> None:
    queue = filled(database, clock, num=2)
    task = taken(queue, "ann")
    with pytest.raises(HttpError, match="only a task that is done"):
        queue.review(task.id, "eve", accept=True, note="")
    queue.done(task.id, "ann")
    found = queue.next_for_review("eve")
    assert found is not None
    assert found.id == task.id
    assert queue.next_for_review("ann") is None, "nobody reviews their own"
    queue.review(task.id, "eve", accept=False, note="edges")
    assert taken(queue, "bob").image == "k1"
    again = taken(queue, "ann")
    assert (again.id, again.note, again.state) == (task.id, "edges", "leased")
    queue.done(task.id, "ann")
    queue.review(task.id, "eve", accept=True, note="")
    assert queue.task(task.id).state == "accepted"
    with pytest.raises(HttpError, match="ask a reviewer"):
        queue.reopen(task.id, "ann")


def test_filling_again_adds_what_is_new(database: Database, clock: Clock) -> None:
    queue = filled(database, clock, num=2)
    task = taken(queue, "ann")
    assert queue.add_images(references(3), overlap=1) == 1
    assert queue.count_by_state() == {"leased": 1, "queued": 2}
    assert queue.task(task.id).state == "leased"
    assert queue.upcoming_images(5) == ["k1", "k2"]


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(ConfigError, match="is not a store of sam-annotate"):
        Database(tmp_path / "a.sqlite")
    with Database(tmp_path / "b.sqlite").transaction() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="a store of version 99"):
        Database(tmp_path / "b.sqlite")


def test_a_store_from_before_masks_had_names_goes_on(database: Database, clock: Clock) -> None:
    task = taken(filled(database, clock, num=1), "ann")
    with database.transaction() as db:
        db.execute("ALTER TABLE masks DROP COLUMN name")
        db.execute("PRAGMA user_version = 1")
    for _ in range(2):
        queue = TaskQueue(Database(database.path), lease_s=LEASE_S, now=clock)
        commits = MaskStore(queue.database, queue)
        commits.add_proposals(task.id, [ProposedMask(rle=encode_rle(np.eye(3) > 0), name="cat")])
        assert [mask["name"] for mask in commits.list_masks(task.id)] == ["cat"]


def test_an_unknown_task_is_not_there(database: Database, clock: Clock) -> None:
    with pytest.raises(HttpError, match="there is no task 7") as error:
        filled(database, clock).task(7)
    assert error.value.status == 404
