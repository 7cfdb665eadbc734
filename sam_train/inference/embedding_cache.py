"""Cache of image embeddings on disk: encoding an image takes seconds, reading its embedding milliseconds.

The path `<folder>/<model>/<dtype>/<image>.safetensors` consists of two hashes: `embedding_hash` of the model that encodes, and
that of the image. The file holds both and the hash of its own tensor. A file that does not match (another model, another image,
truncated or foreign) is treated as missing, counted by reason, and overwritten. Files of earlier versions, which were named by
the hash of a checkpoint's file, are not read: the checkpoint may have been replaced while they were written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from os import PathLike
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam_train.files import atomic_write_bytes
from sam_train.model import Sam
from sam_train.model.embedding_hash import embedding_hash

FORMAT = "sam-train/embedding-2"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class EmbeddingCache:
    """Embeddings of one model in one precision.

    folder: created when the first embedding is saved; may hold embeddings of many models.
    model: the model that encodes. Its image encoder must not change afterwards.
    dtype: float32, float16 (half the space) or bfloat16; `load` returns float32 for all of them.

    Raises ValueError for another dtype.
    """

    def __init__(self, folder: str | PathLike[str], model: Sam, *, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.model_hash, self.dtype = embedding_hash(model), dtype
        self.folder = Path(folder) / self.model_hash / dtype
        self.rejected: Counter[str] = Counter()
        """Number of files that existed but did not match, by reason."""

    def embedding_path(self, image: UInt8[np.ndarray, "H W 3"]) -> Path:
        """Return the path of the file that holds the image's embedding."""
        return self.folder / f"{hash_image(image)}.safetensors"

    def load(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "E h w"] | None:
        """Return the image's embedding as float32 on the CPU, or None if no valid file holds it."""
        path = self.embedding_path(image)
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata() or {}, list(file.keys())
                embedding = file.get_tensor("embedding") if "embedding" in names else None
        except FileNotFoundError:
            return None
        except SafetensorError:
            self.rejected["truncated, or not a safetensors file"] += 1
            return None
        reason = self._mismatch(metadata, embedding, path.stem)
        if reason or embedding is None:
            self.rejected[reason] += 1
            return None
        return embedding.float()

    def save(self, image: UInt8[np.ndarray, "H W 3"], embedding: Float[Tensor, "E h w"]) -> Float[Tensor, "E h w"]:
        """Write the image's embedding atomically and return the values that `load` will return, rounded to the dtype.

        Raises ValueError if the dtype cannot represent a value.
        """
        stored = embedding.detach().to("cpu", DTYPES[self.dtype]).contiguous()
        if not torch.isfinite(stored).all():
            raise ValueError(
                f"an embedding with values up to {embedding.abs().max():.3g} does not fit into {self.dtype}: use float32"
            )
        path = self.embedding_path(image)
        atomic_write_bytes(path, safetensors.torch.save({"embedding": stored}, self._metadata(path.stem, stored)))
        return stored.float()

    def _metadata(self, image_hash: str, stored: Tensor) -> dict[str, str]:
        return {"format": FORMAT, "model": self.model_hash, "image": image_hash, "sha256": hash_tensor(stored)}

    def _mismatch(self, metadata: dict[str, str], embedding: Tensor | None, image_hash: str) -> str:
        """Return why a file must not be used, "" if it may."""
        if metadata.get("format") != FORMAT or embedding is None:
            return "not an embedding file"
        if metadata.get("model") != self.model_hash:
            return "of another model"
        if metadata.get("image") != image_hash:
            return "of another image"
        if embedding.dtype != DTYPES[self.dtype] or metadata.get("sha256") != hash_tensor(embedding):
            return "changed since it was written"
        return ""


def hash_image(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Return the SHA-256 of size and pixels; it does not depend on the file or the lossless format of the image."""
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of dtype, shape and bytes of a CPU tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
