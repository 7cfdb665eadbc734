"""Decoding of prompts in batches: in parallel threads on a CPU, in batches as large as the memory allows on a GPU."""

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
    """Splits prompts into batches of at most `size`, and halves the size when a batch does not fit into GPU memory."""

    def __init__(self, size: int) -> None:
        """Raises ValueError if `size` is less than 1."""
        if size < 1:
            raise ValueError(f"points_per_batch is {size}: expected at least 1")
        self.size = size

    def map(self, decode: Callable[[Rows], T], rows: Rows, chunk_size: int) -> Iterator[T]:
        """Yield `decode(part)` for consecutive parts of `rows` of at most `chunk_size` rows each, in order.

        On a CPU each of torch's threads decodes batches of its own. If all threads shared each operation instead, they would
        wait for each other thousands of times, and a thread that another program keeps off its core would delay all of them.

        Raises torch.OutOfMemoryError if a single prompt does not fit into memory.
        """
        num, threads = min(self.size, chunk_size), torch.get_num_threads()
        if rows.device.type != "cpu":
            yield from self._map_with_backoff(decode, rows, chunk_size)
        elif threads == 1:
            yield from map(decode, rows.split(num) if len(rows) else ())
        else:
            yield from _map_in_threads(decode, rows.split(max(1, min(num, -(-len(rows) // threads)))), threads)

    def _map_with_backoff(self, decode: Callable[[Rows], T], rows: Rows, chunk_size: int) -> Iterator[T]:
        """Decode batch after batch, and halve the batch size on an out-of-memory error."""
        while len(rows):
            part, results = rows[: min(self.size, chunk_size)], []
            try:
                results.append(decode(part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            if not results:  # outside of the handler, whose traceback would keep the tensors of the failed attempt alive
                self.size = len(part) // 2
                log.warning("%d prompts do not fit into GPU memory: continuing with batches of %d", len(part), self.size)
                torch.cuda.empty_cache()
                continue
            rows = rows[len(part) :]
            yield results[0]


def _map_in_threads(decode: Callable[[Rows], T], parts: Sequence[Rows], threads: int) -> list[T]:
    pending, lock, results = deque(range(len(parts))), Lock(), dict[int, T]()

    def next_index() -> int | None:
        with lock:
            return pending.popleft() if pending else None

    def decode_pending() -> None:
        torch.set_num_threads(1)
        try:
            while (index := next_index()) is not None:
                results[index] = decode(parts[index])
        except BaseException:
            pending.clear()  # the other threads stop after their current part
            raise

    try:
        # The calling thread decodes as well: memory that it freed before is available to it, and to no other (glibc's arenas).
        with ThreadPoolExecutor(threads - 1, "decode") as pool:
            others = [pool.submit(decode_pending) for _ in range(threads - 1)]
            decode_pending()
            for other in others:
                other.result()
    finally:  # torch's number of threads is per thread, but threads that start later inherit it
        torch.set_num_threads(threads)
    return [results[index] for index in range(len(parts))]
