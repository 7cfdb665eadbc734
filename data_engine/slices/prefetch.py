"""Reading ahead and finishing behind, so that neither waits for the model nor it for them. The order stays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from data_engine.sources import ImageReference, Source
from data_engine.structures import SourceImage

T = TypeVar("T")


class BackgroundFinisher(Generic[T]):
    """Calls run in a thread of their own: giving it one returns what the one before it made, None the first time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._running: Future[T] | None = None

    def __enter__(self) -> BackgroundFinisher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, call: Callable[[], T] | None) -> T | None:
        """Raises what the call before it raised."""
        before = self._running.result() if self._running else None
        self._running = self._pool.submit(call) if call else None
        return before


def prefetch_images(source: Source, ahead: int) -> Iterator[tuple[ImageReference, Callable[[], SourceImage]]]:
    """The references of a source in order, each with a call that gives its picture; up to `ahead` are loaded meanwhile."""
    if not ahead:
        for reference in source.references:
            yield reference, lambda reference=reference: source.load(reference)  # type: ignore[misc]
        return
    waiting: deque[tuple[ImageReference, Future[SourceImage]]] = deque()
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="load")
    try:
        for reference in source.references:
            waiting.append((reference, pool.submit(source.load, reference)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
