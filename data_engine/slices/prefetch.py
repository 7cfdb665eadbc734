"""Prefetching of images and background finishing of samples, so that the model never waits for either. The order is preserved."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from data_engine.sources import ImageReference, Source
from data_engine.structures import SourceImage

T = TypeVar("T")


class BackgroundFinisher(Generic[T]):
    """Runs calls one by one in a background thread; submitting a call returns the result of the previous one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._running: Future[T] | None = None

    def __enter__(self) -> BackgroundFinisher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, call: Callable[[], T] | None) -> T | None:
        """Submit a call and return the result of the previous one, None if there was none. Raises what the previous one raised.

        With None nothing is submitted, and the last result is returned.
        """
        previous = self._running.result() if self._running else None
        self._running = self._pool.submit(call) if call else None
        return previous


def prefetch_images(source: Source, num_prefetch: int) -> Iterator[tuple[ImageReference, Callable[[], SourceImage]]]:
    """Iterate over the references of a source in order, each with a call that returns its image.

    Up to `num_prefetch` images are loaded in background threads meanwhile; with 0 an image is loaded by its call.
    """
    if not num_prefetch:
        for reference in source.references:
            yield reference, lambda reference=reference: source.load(reference)  # type: ignore[misc]
        return
    waiting: deque[tuple[ImageReference, Future[SourceImage]]] = deque()
    pool = ThreadPoolExecutor(num_prefetch, thread_name_prefix="load")
    try:
        for reference in source.references:
            waiting.append((reference, pool.submit(source.load, reference)))
            if len(waiting) > num_prefetch:
                first, future = waiting.popleft()
                yield first, future.result
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
