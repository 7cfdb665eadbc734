"""Files of text prompt embeddings, computed once: `sa_000000.text-0123456789ab.safetensors` beside `sa_000000.tar`.

The twelve digits begin the hash of the embedder (`TextPromptEmbedder.sha256`: the encoder's weights and the settings), so the
files of several embedders can lie side by side. Rows are found by image id and mask id. A file holds the SHA-256 of its shard,
and is computed anew when the shard has been rewritten.
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
from sam_train.text.embedders import TextEmbeddings, TextPromptEmbedder

FORMAT = "sam-train/text-1"
MAX_OPEN_FILES = 256


class TextEmbeddingStore:
    """The embedding files of any number of shards, made by one embedder.

    embedder: computes the embeddings that are missing.
    folder: folder of the files; None puts each beside its shard.
    """

    def __init__(self, embedder: TextPromptEmbedder, folder: str | None = None) -> None:
        self.embedder, self.folder = embedder, Path(folder) if folder else None

    @property
    def dim(self) -> int:
        """Dimension E of an embedding."""
        return self.embedder.encoder.dim

    def prepare(self, shards: list[Path | str]) -> int:
        """Compute the embedding files that are missing or out of date; return the number of masks with a text prompt.

        Raises ConfigError if no mask of the shards has a text prompt, and for shards that are not on this machine.
        """
        num_masks = 0
        missing: list[tuple[Path, str]] = []
        for shard in shards:
            if isinstance(shard, str):
                raise ConfigError(
                    f"{shard} is a remote shard: text embeddings need local shards, so copy it to this machine first"
                )
            sha256 = _shard_sha256(shard)
            num_stored = _num_masks(self.file_path(shard), sha256)
            num_masks += num_stored or 0
            missing += [(shard, sha256)] if num_stored is None else []
        for shard, sha256 in track(missing, description="embedding text prompts", disable=not missing):
            num_masks += self._write(shard, sha256)
        if not num_masks:
            remedy = (
                "give masks with names (sam-data import keeps categories), or for text=clip lower text.min_area_px or set "
                "text.stages=null"
            )
            raise ConfigError(f"no mask of the {len(shards)} shards has a text prompt: {remedy}")
        return num_masks

    def file_path(self, shard: Path) -> Path:
        """Return the path of the embedding file of a shard."""
        name = f"{shard.name.removesuffix('.tar')}.text-{self.embedder.sha256[:12]}.safetensors"
        return (self.folder or shard.parent) / name

    def load(self, shard: Path, image_id: int) -> TextEmbeddings:
        """Return the embeddings of an image's masks; none if no mask of the image has a text prompt.

        Raises ShardError if the file of the shard is missing or corrupt.
        """
        path = self.file_path(shard)
        try:
            file = _open_file(path)
        except (OSError, SafetensorError) as error:
            message = f"the text embeddings {path.name} cannot be read ({error}): start the run again, which computes them"
            raise ShardError(message, shard=str(shard)) from error
        return file.load(image_id)

    def __getstate__(self) -> dict[str, Any]:
        _ = self.embedder.sha256  # computed and cached while the encoder's weights are at hand: they are not pickled
        return self.__dict__

    def _write(self, shard: Path, sha256: str) -> int:
        image_ids: list[int] = []
        rows: list[TextEmbeddings] = []
        for sample in iterate_samples([shard]):
            rows.append(self.embedder.embed(sample))
            image_ids += [sample.record.image_id] * len(rows[-1].mask_ids)
        tensors = {
            "image_ids": np.array(image_ids, np.int64),
            "mask_ids": np.concatenate([r.mask_ids for r in rows]) if rows else np.zeros(0, np.int64),
            "embeddings": np.concatenate([r.embeddings for r in rows]).astype(np.float16) if rows else np.zeros((0, 1, self.dim)),
        }
        metadata = {"format": FORMAT, "shard": sha256, "prompts": self.embedder.sha256, "num_masks": str(len(image_ids))}
        atomic_write_bytes(self.file_path(shard), safetensors.numpy.save(tensors, metadata))
        _open_file.cache_clear()  # this process may have the previous file open
        return len(image_ids)


class _EmbeddingFile:
    """An open embedding file. Rows are read from disk on demand, because a file may be as large as its shard."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "numpy")
        image_ids = self._file.get_tensor("image_ids")
        self._mask_ids = self._file.get_tensor("mask_ids")
        starts = np.flatnonzero(np.r_[True, image_ids[1:] != image_ids[:-1]]) if len(image_ids) else np.zeros(0, int)
        ends = [*starts[1:].tolist(), len(image_ids)]
        self._rows = {int(image_ids[start]): slice(int(start), end) for start, end in zip(starts, ends, strict=True)}

    def load(self, image_id: int) -> TextEmbeddings:
        rows = self._rows.get(image_id, slice(0, 0))
        embeddings = self._file.get_slice("embeddings")[rows.start : rows.stop]
        return TextEmbeddings(mask_ids=self._mask_ids[rows], embeddings=embeddings)


@lru_cache(MAX_OPEN_FILES)
def _open_file(path: Path) -> _EmbeddingFile:
    return _EmbeddingFile(path)


def _shard_sha256(shard: Path) -> str:
    return load_manifest(shard).sha256 if manifest_path(shard).is_file() else file_sha256(shard)


def _num_masks(path: Path, shard_sha256: str) -> int | None:
    """Return the number of masks in an embedding file; None if there is no file, or it belongs to other shard content."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return None
    if (metadata.get("format"), metadata.get("shard")) != (FORMAT, shard_sha256):
        return None
    return int(metadata["num_masks"])
