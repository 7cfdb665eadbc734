"""Embeddings of masks, computed once: `sa_000000.text-0123456789ab.safetensors` beside `sa_000000.tar`.

The twelve digits are of the hash of what made them (`MaskPrompts.sha256`: the encoder's weights and how it was asked), so tables
of several encoders lie side by side. A row is found by image id and mask id; the shard's own SHA-256 stands inside, so the
table of a shard that was written anew is made anew.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from rich.progress import track
from safetensors import SafetensorError, safe_open

from sam_train.errors import ConfigError, ShardError
from sam_train.files import atomic_write_bytes, file_sha256
from sam_train.shards import iterate_samples, load_manifest, manifest_path
from sam_train.text.prompts import MaskPrompts, Texts

FORMAT = "sam-train/text-1"
OPEN_AT_ONCE = 256


class TextEmbeddingStore:
    """The tables of shards, of one kind.

    prompts: makes the embeddings. folder: where tables lie, None beside their shards.
    """

    def __init__(self, prompts: MaskPrompts, folder: str | None = None) -> None:
        self.prompts, self.folder = prompts, Path(folder) if folder else None

    @property
    def dim(self) -> int:
        """E."""
        return self.prompts.encoder.dim

    def prepare(self, shards: list[Path | str]) -> int:
        """Make the tables that are not there, or are of other shards of these names; how many masks of all have words.

        Raises ConfigError when none has, and for shards that are not on this machine.
        """
        num_masks = 0
        missing: list[tuple[Path, str]] = []
        for shard in shards:
            if isinstance(shard, str):
                raise ConfigError(
                    f"{shard} is not on this machine: tables of words are made of shards that are, so copy it first"
                )
            sha256 = _shard_sha256(shard)
            found = _num_masks(self.path_of(shard), sha256)
            num_masks += found or 0
            missing += [(shard, sha256)] if found is None else []
        for shard, sha256 in track(missing, description="embedding words", disable=not missing):
            num_masks += self._write(shard, sha256)
        if not num_masks:
            wanted = (
                "masks with names (sam-data import keeps categories), or for text=clip masks of text.min_area_px and text.stages"
            )
            raise ConfigError(f"no mask of the {len(shards)} shards has words: give {wanted}")
        return num_masks

    def path_of(self, shard: Path) -> Path:
        """Of the table."""
        name = f"{shard.name.removesuffix('.tar')}.text-{self.prompts.sha256[:12]}.safetensors"
        return (self.folder or shard.parent) / name

    def of(self, shard: Path, image_id: int) -> Texts:
        """The words of an image's masks. Raises ShardError when the table is not there or torn."""
        path = self.path_of(shard)
        try:
            table = _opened(path)
        except (OSError, SafetensorError) as error:
            wanted = "start the run again, which makes it"
            raise ShardError(f"no table of words {path.name} ({error}): {wanted}", shard=str(shard)) from error
        return table.of(image_id)

    def __getstate__(self) -> dict[str, Any]:
        _ = self.prompts.sha256  # known before the encoder stays behind
        return self.__dict__

    def _write(self, shard: Path, sha256: str) -> int:
        image_ids: list[int] = []
        rows: list[Texts] = []
        for sample in iterate_samples([shard]):
            rows.append(self.prompts.of(sample))
            image_ids += [sample.record.image_id] * len(rows[-1].mask_ids)
        tensors = {
            "image_ids": np.array(image_ids, np.int64),
            "mask_ids": np.concatenate([r.mask_ids for r in rows]) if rows else np.zeros(0, np.int64),
            "embeddings": np.concatenate([r.embeddings for r in rows]).astype(np.float16) if rows else np.zeros((0, 1, self.dim)),
        }
        metadata = {"format": FORMAT, "shard": sha256, "prompts": self.prompts.sha256, "num_masks": str(len(image_ids))}
        atomic_write_bytes(self.path_of(shard), safetensors.numpy.save(tensors, metadata))
        _opened.cache_clear()  # this process may have the old one open
        return len(image_ids)


class _Table:
    """Rows are read from the disk when they are asked for: a table may be as large as its shard."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "numpy")
        image_ids = self._file.get_tensor("image_ids")
        self._mask_ids = self._file.get_tensor("mask_ids")
        starts = np.flatnonzero(np.r_[True, image_ids[1:] != image_ids[:-1]]) if len(image_ids) else np.zeros(0, int)
        ends = [*starts[1:].tolist(), len(image_ids)]
        self._rows = {int(image_ids[start]): slice(int(start), end) for start, end in zip(starts, ends, strict=True)}

    def of(self, image_id: int) -> Texts:
        rows = self._rows.get(image_id, slice(0, 0))
        embeddings = self._file.get_slice("embeddings")[rows.start : rows.stop]
        return Texts(mask_ids=self._mask_ids[rows], embeddings=embeddings)


@lru_cache(OPEN_AT_ONCE)
def _opened(path: Path) -> _Table:
    return _Table(path)


def _shard_sha256(shard: Path) -> str:
    return load_manifest(shard).sha256 if manifest_path(shard).is_file() else file_sha256(shard)


def _num_masks(path: Path, shard_sha256: str) -> int | None:
    """Of a table of this very shard; None when there is none."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    if (metadata.get("format"), metadata.get("shard")) != (FORMAT, shard_sha256):
        return None
    return int(metadata["num_masks"])
