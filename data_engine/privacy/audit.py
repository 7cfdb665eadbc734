"""The audit of redactions: one JSONL file per shard, one line per box. Stored beside the shards, never in them."""

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
    """Return the path of a shard's audit: `out/privacy/sa_000000.jsonl` for `out/sa_000000.tar`."""
    return shard.parent / "privacy" / f"{shard.name.removesuffix('.tar')}.jsonl"


class RedactionAudit:
    """The redacted boxes of one shard, collected until the shard is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, record: ImageRecord, boxes: Iterable[RedactedBox]) -> None:
        """Add the redacted boxes of an image of the shard."""
        self._lines += [json.dumps({"key": record.key, "image_id": record.image_id, **asdict(box)}) for box in boxes]

    def write(self, shard: Path) -> None:
        """Write the file atomically, even if empty. Call it before the manifest exists, so that complete shards have audits."""
        atomic_write_bytes(audit_path(shard), "".join(line + "\n" for line in self._lines).encode())


def read_audit(shard: Path) -> Iterator[tuple[str, RedactedBox]]:
    """Yield the image key and the box of every redaction in a shard, image by image; nothing if the shard has no audit.

    Raises ShardError for an invalid line.
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
                box = RedactedBox(**entry)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                message = f"{path}, line {number} is not a line of an audit: {error}; write the shard again"
                raise ShardError(message) from error
            yield key, box
