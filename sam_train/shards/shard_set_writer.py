"""Writer of a folder of shards with a fixed number of images each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.manifest import Manifest, done_shards, load_manifest, manifest_path
from sam_train.shards.mask_table import mask_table_path
from sam_train.shards.reader import iterate_samples
from sam_train.shards.writer import write_shard


class ShardSetWriter:
    """Writer of shards of `images_per_shard` images to one folder; complete shards that exist there are reused."""

    def __init__(
        self, folder: Path, images_per_shard: int, provenance: dict[str, Any], categories: Mapping[int, str] | None = None
    ) -> None:
        self.folder, self.images_per_shard, self.provenance = folder, images_per_shard, provenance
        self.categories: Mapping[int, str] = {} if categories is None else categories
        self.num_images = self.num_masks = self.num_shards = self.num_reused_shards = 0
        self._samples: list[tuple[ImageRecord, bytes]] = []
        self._counts: Counter[str] = Counter()
        self._skipped: dict[str, str] = {}
        self._written: list[Path] = []

    def add(self, record: ImageRecord, jpeg: bytes, counts: Counter[str], skipped: Mapping[str, str] | None = None) -> None:
        """Add one image, and write a shard if one is full.

        `counts` says how many masks of it were dropped, by reason, and `skipped` which entries were left out before it and why.
        """
        self._samples.append((record, jpeg))
        self._counts += counts
        self._skipped |= skipped or {}
        self.num_images += 1
        self.num_masks += len(record.masks)
        if len(self._samples) == self.images_per_shard:
            self._flush()

    def close(self) -> None:
        """Write the remaining images as a last, smaller shard.

        Raises ShardError if the folder holds shards that another import has written.
        """
        if self._samples:
            self._flush()
        if more := done_shards(self.folder)[self.num_shards :]:
            message = f"{more[0].name} and {len(more) - 1} more were written by another import: give an empty --out"
            raise ShardError(message, shard=str(more[0]))

    def discard(self) -> None:
        """Remove the shards that this writer has written; those that existed before stay."""
        for shard in self._written:
            for path in (manifest_path(shard), mask_table_path(shard), shard):  # without its manifest a shard is incomplete
                path.unlink(missing_ok=True)

    def _flush(self) -> None:
        shard = self.folder / f"sa_{self.num_shards:06d}.tar"
        if manifest_path(shard).is_file():
            self._check_existing(shard, load_manifest(shard))
            self.num_reused_shards += 1
        else:
            counts = {name: float(count) for name, count in self._counts.items()}
            write_shard(
                shard,
                self._samples,
                skipped=self._skipped,
                counts=counts,
                provenance=self.provenance,
                categories=self.categories,
            )
            self._written.append(shard)
        self.num_shards += 1
        self._samples, self._counts, self._skipped = [], Counter(), {}

    def _check_existing(self, shard: Path, manifest: Manifest) -> None:
        records = [record for record, _ in self._samples]
        is_same_import = manifest.keys == [record.key for record in records] and manifest.provenance == self.provenance
        is_complete = shard.is_file() and shard.stat().st_size == manifest.bytes
        if not is_same_import or not is_complete or [sample.record for sample in iterate_samples([shard])] != records:
            message = "this shard exists, but holds other images or was written with other options: give an empty --out"
            raise ShardError(message, shard=str(shard))
