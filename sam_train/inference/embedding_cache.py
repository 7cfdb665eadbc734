"""Image embeddings on disk: encoding a picture again costs seconds, reading its embedding milliseconds.

A file is named by what it was made of, `<folder>/<checkpoint>/<dtype>/<picture>.safetensors`, both by SHA-256, and carries
both and the hash of its own bytes inside. What does not match is not used: another model's, another picture's, a torn or a
foreign file is an embedding that is not there, counted by reason, and written anew.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam_train.files import atomic_write_bytes

FORMAT = "sam-train/embedding-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class EmbeddingCache:
    """Embeddings of one checkpoint in one precision.

    checkpoint_sha256: `checkpoint_hash` of the file that the model was loaded from; the caller answers for it.
    dtype: float32, float16 (half the space) or bfloat16; what comes back is float32 in any case.
    Raises ValueError for another dtype and for what is no SHA-256.
    """

    def __init__(self, folder: Path, *, checkpoint_sha256: str, dtype: str = "float16") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if len(checkpoint_sha256) != 64 or set(checkpoint_sha256) - set("0123456789abcdef"):
            raise ValueError(f"checkpoint_sha256 must be 64 hex digits (checkpoint_hash gives them), got {checkpoint_sha256!r}")
        self.folder = folder / checkpoint_sha256 / dtype
        self.checkpoint_sha256, self.dtype = checkpoint_sha256, dtype
        self.refused: Counter[str] = Counter()
        """How many files were there and not used, by reason."""

    def path_of(self, image: UInt8[np.ndarray, "H W 3"]) -> Path:
        """Where the embedding of a picture lies."""
        return self.folder / f"{hash_image(image)}.safetensors"

    def load(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "E h w"] | None:
        """The picture's embedding, or None when there is none to be trusted."""
        path = self.path_of(image)
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata() or {}, list(file.keys())
                embedding = file.get_tensor("embedding") if "embedding" in names else None
        except FileNotFoundError:
            return None
        except SafetensorError:
            self.refused["torn or no safetensors file"] += 1
            return None
        reason = self._reason_against(metadata, embedding, path.stem)
        if reason or embedding is None:
            self.refused[reason] += 1
            return None
        return embedding.float()

    def save(self, image: UInt8[np.ndarray, "H W 3"], embedding: Float[Tensor, "E h w"]) -> Float[Tensor, "E h w"]:
        """Write the picture's embedding, whole or not at all; what `load` will answer, on the CPU.

        Raises ValueError when the dtype cannot hold its values.
        """
        stored = embedding.detach().to("cpu", DTYPES[self.dtype]).contiguous()
        if not torch.isfinite(stored).all():
            raise ValueError(
                f"an embedding with values up to {embedding.abs().max():.3g} does not fit {self.dtype}: take float32"
            )
        path = self.path_of(image)
        atomic_write_bytes(path, safetensors.torch.save({"embedding": stored}, self._metadata(path.stem, stored)))
        return stored.float()

    def _metadata(self, image: str, stored: Tensor) -> dict[str, str]:
        return {"format": FORMAT, "checkpoint": self.checkpoint_sha256, "image": image, "sha256": hash_tensor(stored)}

    def _reason_against(self, metadata: dict[str, str], embedding: Tensor | None, image: str) -> str:
        if metadata.get("format") != FORMAT or embedding is None:
            return "no embedding of ours"
        if metadata.get("checkpoint") != self.checkpoint_sha256:
            return "of another checkpoint"
        if metadata.get("image") != image:
            return "of another picture"
        if embedding.dtype != DTYPES[self.dtype] or metadata.get("sha256") != hash_tensor(embedding):
            return "changed since it was written"
        return ""


def hash_image(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Of size and pixels: the same picture from another file, or saved again without loss, has the same."""
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """Of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
