"""What was covered, a line a box, in a file a shard beside the shards and never in them: out/privacy/sa_000000.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_engine.structures import RedactedBox
from sam_train.errors import ShardError
from sam_train.files import atomic_write_bytes
from sam_train.records import ImageRecord


def audit_path(shard: Path) -> Path:
    """`out/sa_000000.tar` -> `out/privacy/sa_000000.jsonl`."""
    return shard.parent / "privacy" / f"{shard.name.removesuffix('.tar')}.jsonl"


class RedactionAudit:
    """The boxes of one shard, kept until it is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, record: ImageRecord, covered: Iterable[RedactedBox]) -> None:
        """What was covered in a picture that goes into the shard."""
        self._lines += [json.dumps({"key": record.key, "image_id": record.image_id, **asdict(place)}) for place in covered]

    def write(self, shard: Path) -> None:
        """The file, whole, also when nothing was covered. Before the shard's manifest, so a shard that is done has its audit."""
        atomic_write_bytes(audit_path(shard), "".join(line + "\n" for line in self._lines).encode())


def read_audit(shard: Path) -> Iterator[tuple[str, RedactedBox]]:
    """Key and box of everything covered in a shard, picture by picture; nothing of one that has no file.

    Raises ShardError for a line that is none of ours.
    """
    path = audit_path(shard)
    if not path.is_file():
        return
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry: dict[str, Any] = json.loads(line)
                key, _ = entry.pop("key"), entry.pop("image_id")
                entry |= {name: tuple(entry[name]) for name in ("found_xyxy", "covered_xyxy")}
                place = RedactedBox(**entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                message = f"{path}, line {number} is no line of an audit: {error}; write the shard again"
                raise ShardError(message) from error
            yield key, place
