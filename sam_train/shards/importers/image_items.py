"""Entries of a data set before they are decoded: one image file and the function that reads its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from sam_train.errors import ShardError
from sam_train.records import MaskRecord

MAX_FILE_BYTES = 1 << 30


@runtime_checkable
class ItemFile(Protocol):
    """An image that can be read from a disk or from a tar."""

    def exists(self) -> bool:
        """Return whether the file is there."""

    def read(self) -> bytes:
        """Return its bytes."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file on a disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Return whether the file is there."""
        return self.path.is_file()

    def read(self) -> bytes:
        """Return its bytes. Raises ShardError if there are more than MAX_FILE_BYTES."""
        if self.path.stat().st_size > MAX_FILE_BYTES:
            raise ShardError(f"{self.path} has more than {MAX_FILE_BYTES} bytes, the limit of an image file")
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """An image that an annotation file holds."""

    data: bytes
    place: str

    def __str__(self) -> str:
        return self.place

    def exists(self) -> bool:
        """Return True: the bytes are there."""
        return True

    def read(self) -> bytes:
        """Return the bytes."""
        return self.data


def _no_size() -> tuple[int, int] | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem:
    """One image of a data set, listed but not yet decoded."""

    name: str
    """Path of the image relative to the data set, with '/' between folders. Key and, by default, image id follow from it."""
    file: ItemFile
    masks: Callable[[int, int], Iterable[MaskRecord]]
    """Function from (height, width) of the frame of the annotations to the masks."""
    declared_size: Callable[[], tuple[int, int] | None] = _no_size
    """Function that returns the (width, height) to which the annotations refer, None if they do not say it."""
    image_id: int | None = None
    key: str = ""
    """Key of the sample where the data set defines it."""
