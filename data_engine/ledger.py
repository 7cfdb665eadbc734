"""The ledger: totals over all shards of a run, that is images, masks, skips by reason, clicks, seconds.

It is the sum of the manifests. A manifest is written atomically with its shard, so the ledger always agrees with the shards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sam_train.files import atomic_write_bytes
from sam_train.shards import done_shards, load_manifest


class Counts(dict[str, float]):
    """Counters by name, summed while masks are made: clicks, seconds, masks dropped by a filter."""

    def add(self, other: Mapping[str, float]) -> None:
        """Add each count of `other`."""
        for name, value in other.items():
            self[name] = self.get(name, 0) + value


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Totals over a folder of shards."""

    shards: int
    images: int
    masks: int
    skipped: dict[str, int]
    """Number of skipped images by reason."""
    counts: dict[str, float]
    """Counters of the stage: clicks, seconds, masks dropped by each filter."""
    machine_seconds: float = 0.0
    """Sum of the seconds of all workers."""
    images_per_machine_second: float | None = None
    """Throughput of one worker, skipped images included; None if no times were logged."""


def read_ledger(folder: Path, slice_log: Iterable[Mapping[str, float]] = ()) -> Ledger:
    """Sum the manifests of the complete shards in `folder`, and the log entries of slices (keys images, skipped, seconds)."""
    manifests = [load_manifest(shard) for shard in done_shards(folder)]
    skipped: Counter[str] = Counter()
    counts = Counts()
    for manifest in manifests:
        skipped.update(manifest.skipped.values())
        counts.add(manifest.counts)
    entries = list(slice_log)
    seconds = sum(entry["seconds"] for entry in entries)
    num_images = sum(entry["images"] + entry["skipped"] for entry in entries)
    return Ledger(
        shards=len(manifests),
        images=sum(len(m.keys) for m in manifests),
        masks=sum(m.num_masks for m in manifests),
        skipped=dict(sorted(skipped.items())),
        counts=dict(sorted(counts.items())),
        machine_seconds=round(seconds, 1),
        images_per_machine_second=round(num_images / seconds, 4) if seconds else None,
    )


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Write `ledger.json` into the folder. Its presence marks the stage as done."""
    atomic_write_bytes(folder / "ledger.json", (json.dumps(asdict(ledger), indent=1) + "\n").encode())
