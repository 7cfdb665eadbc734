"""What was covered in the pictures of a shard lies beside it, in privacy/SHARD.jsonl: it goes where the pictures go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam_train.files import atomic_write_bytes


def copy_audit(old: Path, new: Path, image_ids: Mapping[str, int]) -> int:
    """Write the lines of shard `old` beside shard `new`: of the pictures in `image_ids` (by key), with their ids there.

    How many lines were no lines of an audit, and are left out. Nothing is written where `old` has no file.
    """
    source, target = (shard.parent / "privacy" / f"{shard.name.removesuffix('.tar')}.jsonl" for shard in (old, new))
    if not source.is_file():
        return 0
    lines = source.read_bytes().splitlines()
    entries = [entry for line in lines for entry in _parsed(line)]
    kept = [{**entry, "image_id": image_ids[entry["key"]]} for entry in entries if entry["key"] in image_ids]
    atomic_write_bytes(target, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
    return len(lines) - len(entries)


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    try:
        entry = json.loads(line)
    except ValueError:
        return
    if isinstance(entry, dict) and isinstance(entry.get("key"), str):
        yield entry
