"""The audit of redacted regions in privacy/SHARD.jsonl beside a shard, which is copied whenever its images are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam_train.files import atomic_write_bytes


def copy_audit(old: Path, new: Path, image_ids: Mapping[str, int]) -> int:
    """Write the audit lines of shard `old` beside shard `new`, for the images in `image_ids` (key -> id in the new shard).

    Return the number of invalid lines, which are dropped. Nothing is written if `old` has no audit.
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
