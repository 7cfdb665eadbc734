"""What became of every image: the sum of the manifests in a folder of shards.

Each manifest is written in one piece with its shard, so the ledger can never say more or less than the shards hold.
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
    """What is counted while masks are made, by name: clicks, seconds, masks dropped by a filter."""

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
    """Images left out, by reason."""
    counts: dict[str, float]
    """What the stage counted: clicks, seconds, masks dropped by filter."""
    machine_seconds: float = 0.0
    """Of all workers together."""
    images_per_machine_second: float | None = None
    """Of one worker, skipped pictures among the images; None where nobody took the time."""


def read_ledger(folder: Path, worked: Iterable[Mapping[str, float]] = ()) -> Ledger:
    """Sum the manifests of the shards in `folder` that are done, and what workers took for slices (images, skipped, seconds)."""
    manifests = [load_manifest(shard) for shard in done_shards(folder)]
    skipped: Counter[str] = Counter()
    counts = Counts()
    for manifest in manifests:
        skipped.update(manifest.skipped.values())
        counts.add(manifest.counts)
    slices = list(worked)
    seconds = sum(entry["seconds"] for entry in slices)
    pictures = sum(entry["images"] + entry["skipped"] for entry in slices)
    return Ledger(
        shards=len(manifests),
        images=sum(len(m.keys) for m in manifests),
        masks=sum(m.num_masks for m in manifests),
        skipped=dict(sorted(skipped.items())),
        counts=dict(sorted(counts.items())),
        machine_seconds=round(seconds, 1),
        images_per_machine_second=round(pictures / seconds, 4) if seconds else None,
    )


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """`ledger.json` in the folder; the mark that the stage is done."""
    atomic_write_bytes(folder / "ledger.json", (json.dumps(asdict(ledger), indent=1) + "\n").encode())
