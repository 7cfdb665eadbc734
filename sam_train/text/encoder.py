"""What every text encoder is: words to embeddings of length one. Loaded when it is first used, with `transformers`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.errors import ConfigError

INSTALL = "pip install 'sam-train[text]'"
CHUNK_SIZE = 64
"""Texts or pictures that are embedded together."""


class TextEncoder(ABC):
    """Words to embeddings of length one.

    device: "cpu", "cuda", ...; None takes a GPU where there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device

    @property
    @abstractmethod
    def dim(self) -> int:
        """E, the numbers of an embedding."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """In eval mode, on its device."""

    @abstractmethod
    def _embed(self, texts: list[str]) -> Float[Tensor, "n E"]:
        """Of a few texts, of any length."""

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "N E"]:
        """Embeddings of length one, on the CPU. Raises ValueError for a text without a letter or digit."""
        if empty := [text for text in texts if not any(map(str.isalnum, text))]:
            raise ValueError(f"expected words, got {empty[0]!r}")
        parts = [self._embed(list(texts[i : i + CHUNK_SIZE])) for i in range(0, len(texts), CHUNK_SIZE)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu() if parts else torch.zeros(0, self.dim)

    @cached_property
    def sha256(self) -> str:
        """Of the network's weights, by name: embeddings of other weights mean other things."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __getstate__(self) -> dict[str, Any]:
        """Without the network: a loader process loads what it needs, which is mostly nothing."""
        return {name: value for name, value in self.__dict__.items() if name not in ("network", "tokenizer")}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Of weights that are loaded: they are small, and read from the disk."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def pretrained(load: Callable[[], Any], name: str) -> Any:
    """What `load` makes of a folder or a name of the Hugging Face hub. Raises ConfigError that says why it does not."""
    try:
        with _no_progress_bar():
            return load()
    except ImportError as error:
        raise ConfigError(f"words need {error.name}: {INSTALL}") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        wanted = "give a folder with config.json, model.safetensors and tokenizer.json, or a name of the Hugging Face hub"
        raise ConfigError(f"{name} cannot be loaded as a text encoder ({reason}): {wanted}") from error
