"""Prompts a batch at a time: on a CPU several batches side by side, elsewhere batches as large as the memory allows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

T = TypeVar("T")
Rows = Int[Tensor, "_"]

log = logging.getLogger(__name__)


class PromptBatcher:
    """`size` prompts at once; half as many from where that does not fit on."""

    def __init__(self, size: int) -> None:
        """Raises ValueError for less than one prompt at a time."""
        if size < 1:
            raise ValueError(f"prompts cannot be decoded {size} at a time: it must be at least 1")
        self.size = size

    def map(self, work: Callable[[Rows], T], rows: Rows, chunk_size: int) -> Iterator[T]:
        """What `work` makes of some rows after the other, at most `chunk_size` together.

        Raises torch.OutOfMemoryError when even one prompt does not fit. On a CPU each of torch's threads takes a batch of its
        own. Sharing out every operation instead, they would wait for each other thousands of times, and a thread that another
        program keeps from its core would hold up all.
        """
        num, threads = min(self.size, chunk_size), torch.get_num_threads()
        if rows.device.type != "cpu":
            yield from self._one_by_one(work, rows, chunk_size)
        elif threads == 1:
            yield from map(work, rows.split(num) if len(rows) else ())
        else:
            yield from _side_by_side(work, rows.split(max(1, min(num, -(-len(rows) // threads)))), threads)

    def _one_by_one(self, work: Callable[[Rows], T], rows: Rows, chunk_size: int) -> Iterator[T]:
        while len(rows):
            part, done = rows[: min(self.size, chunk_size)], []
            try:
                done.append(work(part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            if not done:  # outside of the handler, which would hold on to what the failed attempt had
                self.size = len(part) // 2
                log.warning("%d prompts at once do not fit into memory: %d from here on", len(part), self.size)
                torch.cuda.empty_cache()
                continue
            rows = rows[len(part) :]
            yield done[0]


def _side_by_side(work: Callable[[Rows], T], parts: Sequence[Rows], threads: int) -> list[T]:
    todo, lock, done = deque(range(len(parts))), Lock(), dict[int, T]()

    def next_index() -> int | None:
        with lock:
            return todo.popleft() if todo else None

    def take() -> None:
        torch.set_num_threads(1)
        try:
            while (index := next_index()) is not None:
                done[index] = work(parts[index])
        except BaseException:
            todo.clear()  # the others end with what they have in hand
            raise

    try:
        # The calling thread is one of them: what it freed before is at hand for it, and for no other (glibc's arenas).
        with ThreadPoolExecutor(threads - 1, "decode") as pool:
            others = [pool.submit(take) for _ in range(threads - 1)]
            take()
            for other in others:
                other.result()
    finally:  # a thread's number is its own, but also what threads that start later begin with
        torch.set_num_threads(threads)
    return [done[index] for index in range(len(parts))]
