"""The task queue: one annotator per task, expiring leases, distinct annotators per image, and the states of task_queue.py."""

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
from sam_train.rle import encode_rle

LEASE_S = 100.0


class Clock:
    """A clock that tests advance by hand."""

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


def make_queue(database: Database, clock: Clock, num: int = 3, overlap: int = 1) -> TaskQueue:
    queue = TaskQueue(database, lease_s=LEASE_S, now=clock)
    queue.add_images(references(num), overlap=overlap)
    return queue


def lease_next(queue: TaskQueue, annotator: str) -> Task:
    task = queue.next(annotator)
    assert task is not None
    return task


def test_annotator_keeps_an_image_until_it_is_done(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock)
    ann, bob = lease_next(queue, "ann"), lease_next(queue, "bob")
    assert (ann.image, bob.image) == ("k0", "k1")
    assert lease_next(queue, "ann").id == ann.id, "a reloaded page gets the same image"
    queue.done(ann.id, "ann")
    assert lease_next(queue, "ann").image == "k2"
    assert queue.next("eve") is None
    assert queue.count_by_state() == {"done": 1, "leased": 2}


def test_concurrent_annotators_never_get_the_same_image(database: Database) -> None:
    queue = TaskQueue(database, lease_s=LEASE_S)
    queue.add_images(references(60), overlap=1)
    images: list[str] = []

    def work(annotator: str) -> None:
        while (task := queue.next(annotator)) is not None:
            images.append(task.image)
            queue.done(task.id, annotator)

    threads = [threading.Thread(target=work, args=(f"a{i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(images) == sorted(reference.key for reference in references(60))


def test_overlap_assigns_an_image_to_distinct_annotators(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock, num=2, overlap=2)
    images_of = {"ann": list[str](), "bob": list[str](), "eve": list[str]()}
    for _ in range(2):
        for annotator, images in images_of.items():
            if (task := queue.next(annotator)) is not None:
                images.append(task.image)
                queue.done(task.id, annotator)
    assert sorted(image for images in images_of.values() for image in images) == ["k0", "k0", "k1", "k1"]
    assert all(len(set(images)) == len(images) for images in images_of.values())


def test_expired_lease_goes_to_the_next_annotator(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock, num=1)
    task = lease_next(queue, "ann")
    clock.now += LEASE_S - 1
    queue.renew_lease(task.id, "ann", seconds=3.0)
    clock.now += LEASE_S - 1
    assert queue.next("bob") is None
    clock.now += 2
    assert lease_next(queue, "bob").id == task.id
    with pytest.raises(HttpError, match="not yours any more") as error:
        queue.done(task.id, "ann")
    assert error.value.status == 403
    queue.done(task.id, "bob")


def test_expired_lease_can_be_renewed_until_it_is_reassigned(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock, num=1)
    task = lease_next(queue, "ann")
    clock.now += 10 * LEASE_S
    queue.renew_lease(task.id, "ann")
    assert queue.next("bob") is None


def test_done_is_idempotent(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock)
    task = lease_next(queue, "ann")
    queue.done(task.id, "ann")
    queue.done(task.id, "ann")
    assert [row[0] for row in database.connection.execute("SELECT kind FROM events")] == ["leased", "done"]


def test_skip_needs_a_reason_and_ended_tasks_can_be_reopened(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock)
    first = lease_next(queue, "ann")
    with pytest.raises(HttpError, match="needs a reason"):
        queue.skip(first.id, "ann", "  ")
    queue.skip(first.id, "ann", "too hard")
    assert queue.task(first.id).reason == "too hard"
    clock.now += 1
    second = lease_next(queue, "ann")
    queue.done(second.id, "ann")
    last = queue.last_ended_by("ann")
    assert last is not None
    assert last.id == second.id
    earlier = queue.last_ended_by("ann", last.id)
    assert earlier is not None
    assert earlier.id == first.id
    assert queue.reopen(first.id, "ann").state == "leased"
    with pytest.raises(HttpError, match="not yours"):
        queue.reopen(second.id, "bob")


def test_review_accepts_or_sends_back_to_the_annotator(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock, num=2)
    task = lease_next(queue, "ann")
    with pytest.raises(HttpError, match="only a task that is done"):
        queue.review(task.id, "eve", accept=True, note="")
    queue.done(task.id, "ann")
    review_task = queue.next_for_review("eve")
    assert review_task is not None
    assert review_task.id == task.id
    assert queue.next_for_review("ann") is None, "reviewers do not get their own tasks"
    queue.review(task.id, "eve", accept=False, note="edges")
    assert lease_next(queue, "bob").image == "k1"
    again = lease_next(queue, "ann")
    assert (again.id, again.note, again.state) == (task.id, "edges", "leased")
    queue.done(task.id, "ann")
    queue.review(task.id, "eve", accept=True, note="")
    assert queue.task(task.id).state == "accepted"
    with pytest.raises(HttpError, match="ask a reviewer"):
        queue.reopen(task.id, "ann")


def test_add_images_adds_only_new_images(database: Database, clock: Clock) -> None:
    queue = make_queue(database, clock, num=2)
    task = lease_next(queue, "ann")
    assert queue.add_images(references(3), overlap=1) == 1
    assert queue.count_by_state() == {"leased": 1, "queued": 2}
    assert queue.task(task.id).state == "leased"
    assert queue.upcoming_images(5) == ["k1", "k2"]


def test_rejects_a_file_that_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(ConfigError, match="is not a store of sam-annotate"):
        Database(tmp_path / "a.sqlite")
    with Database(tmp_path / "b.sqlite").transaction() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="a store of version 99"):
        Database(tmp_path / "b.sqlite")


def test_migrates_a_store_of_version_1(database: Database, clock: Clock) -> None:
    task = lease_next(make_queue(database, clock, num=1), "ann")
    with database.transaction() as db:
        db.execute("ALTER TABLE masks DROP COLUMN name")
        db.execute("PRAGMA user_version = 1")
    for _ in range(2):
        queue = TaskQueue(Database(database.path), lease_s=LEASE_S, now=clock)
        commits = MaskStore(queue.database, queue)
        commits.add_proposals(task.id, [ProposedMask(rle=encode_rle(np.eye(3) > 0), name="cat")])
        assert [mask["name"] for mask in commits.list_masks(task.id)] == ["cat"]


def test_rejects_an_unknown_task(database: Database, clock: Clock) -> None:
    with pytest.raises(HttpError, match="there is no task 7") as error:
        make_queue(database, clock).task(7)
    assert error.value.status == 404
