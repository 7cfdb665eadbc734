"""Writer of a folder of shards of a fixed number of images each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.manifest import Manifest, done_shards, load_manifest, manifest_path
from sam_train.shards.reader import iterate_samples
from sam_train.shards.writer import write_shard


class ShardSetWriter:
    """Fills one folder with shards of `images_per_shard` images; those that are already there are kept."""

    def __init__(self, folder: Path, images_per_shard: int, provenance: dict[str, Any]) -> None:
        self.folder, self.images_per_shard, self.provenance = folder, images_per_shard, provenance
        self.num_images = self.num_masks = self.num_shards = self.num_kept = 0
        self._samples: list[tuple[ImageRecord, bytes]] = []
        self._counts: Counter[str] = Counter()

    def add(self, record: ImageRecord, jpeg: bytes, counts: Counter[str]) -> None:
        """Put one image in; `counts` is what was left out of it. Writes a shard when one is full."""
        self._samples.append((record, jpeg))
        self._counts += counts
        self.num_images += 1
        self.num_masks += len(record.masks)
        if len(self._samples) == self.images_per_shard:
            self._flush()

    def close(self) -> None:
        """Write what is left.

        Raises ShardError when the folder holds shards that are not of this import.
        """
        if self._samples:
            self._flush()
        if more := done_shards(self.folder)[self.num_shards :]:
            raise ShardError(
                f"{more[0].name} and {len(more) - 1} more are of another import: give an empty --out", shard=str(more[0])
            )

    def _flush(self) -> None:
        shard = self.folder / f"sa_{self.num_shards:06d}.tar"
        if manifest_path(shard).is_file():
            self._check_done(shard, load_manifest(shard))
            self.num_kept += 1
        else:
            counts = {name: float(count) for name, count in self._counts.items()}
            write_shard(shard, self._samples, counts=counts, provenance=self.provenance)
        self.num_shards += 1
        self._samples, self._counts = [], Counter()

    def _check_done(self, shard: Path, manifest: Manifest) -> None:
        records = [record for record, _ in self._samples]
        same = manifest.keys == [record.key for record in records] and manifest.provenance == self.provenance
        whole = shard.is_file() and shard.stat().st_size == manifest.bytes
        if not same or not whole or [sample.record for sample in iterate_samples([shard])] != records:
            raise ShardError("the shard is there, but of other images or options: give an empty --out", shard=str(shard))
