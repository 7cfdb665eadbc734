"""All prompts are decoded in order, in batches that fit into memory."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from sam_train.inference.prompt_batching import PromptBatcher


def elsewhere(num: int) -> Tensor:
    """Return rows on a device other than the CPU that needs no CUDA."""
    return torch.arange(num, device="meta")


MANY = 1 << 20


class Memory:
    """A decode function that fits at most `room` prompts."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, list[int]()

    def __call__(self, part: Tensor) -> int:
        self.tried.append(len(part))
        if len(part) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(part)


def test_batches_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    batches, memory = PromptBatcher(64), Memory(20)
    assert list(batches.map(memory, elsewhere(100), MANY)) == [16, 16, 16, 16, 16, 16, 4]
    assert memory.tried == [64, 32, 16, 16, 16, 16, 16, 16, 4]
    assert [r.message for r in caplog.records] == [
        "64 prompts do not fit into GPU memory: continuing with batches of 32",
        "32 prompts do not fit into GPU memory: continuing with batches of 16",
    ]
    list(batches.map(memory, elsewhere(20), MANY))
    assert memory.tried[-2:] == [16, 4], "the next image does not try in vain again"


def test_raises_if_a_single_prompt_does_not_fit() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(PromptBatcher(5).map(Memory(0), elsewhere(7), MANY))


def test_batches_are_at_most_the_models_chunk_size() -> None:
    assert list(PromptBatcher(64).map(Tensor.tolist, torch.arange(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(PromptBatcher(64).map(len, elsewhere(5), 2)) == [2, 2, 1]


def test_handles_no_prompts_and_rejects_size_0() -> None:
    assert list(PromptBatcher(5).map(Tensor.tolist, torch.arange(0), MANY)) == []
    assert list(PromptBatcher(5).map(Memory(9), elsewhere(0), MANY)) == []
    with pytest.raises(ValueError, match="points_per_batch is 0: expected at least 1"):
        PromptBatcher(0)


@pytest.fixture
def three_threads() -> None:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("three_threads")
def test_threads_decode_separate_batches() -> None:
    """Each worker thread uses one torch thread; results are in order although batches finish out of order."""
    threads: dict[int, int] = {}

    def work(part: Tensor) -> tuple[list[int], int]:
        time.sleep(0.02 if part.tolist()[0] == 0 else 0.001)
        threads[threading.get_ident()] = torch.get_num_threads()
        return part.tolist(), len(part)

    found = list(PromptBatcher(4).map(work, torch.arange(50), MANY))
    assert [i for part, _ in found for i in part] == list(range(50))
    assert {size for _, size in found} == {4, 2}
    assert len(threads) == 3
    assert set(threads.values()) == {1}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_few_prompts_are_divided_among_threads() -> None:
    assert [len(part) for part in PromptBatcher(64).map(Tensor.tolist, torch.arange(10), MANY)] == [4, 4, 2]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("error", [IndexError, KeyboardInterrupt])
def test_error_in_a_thread_stops_all(error: type[BaseException]) -> None:
    done: list[Tensor] = []

    def work(part: Tensor) -> None:
        if part.tolist()[0] == 20:
            raise error("here")
        time.sleep(0.005)
        done.append(part)

    with pytest.raises(error, match="here"):
        list(PromptBatcher(1).map(work, torch.arange(400), MANY))
    assert len(done) < 100
    assert torch.get_num_threads() == 3
