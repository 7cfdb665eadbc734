"""Base class of text encoders: texts to embeddings of unit norm. Networks are loaded with `transformers` at first use."""

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

from sam_train.errors import ConfigError, install_extra

INSTALL = install_extra("text")
CHUNK_SIZE = 64
"""Number of texts or images that are embedded in one forward pass."""


class TextEncoder(ABC):
    """Encodes texts as embeddings of unit norm.

    device: "cpu", "cuda", ...; None takes a GPU if there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension E of an embedding."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network in eval mode, on `device`."""

    @abstractmethod
    def _embed(self, texts: list[str]) -> Float[Tensor, "n E"]:
        """Return the embeddings, of any norm, of at most CHUNK_SIZE texts."""

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "N E"]:
        """Return embeddings of unit norm, on the CPU.

        Raises ValueError for a str in place of a list of texts, and for a text without a letter or digit.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of texts, got the str {texts!r}: pass [{texts!r}]")
        if empty := [text for text in texts if not any(map(str.isalnum, text))]:
            raise ValueError(f"a text prompt needs a letter or a digit, got {empty[0]!r}")
        parts = [self._embed(list(texts[i : i + CHUNK_SIZE])) for i in range(0, len(texts), CHUNK_SIZE)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu() if parts else torch.zeros(0, self.dim)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the class name and the network's named weights: embeddings of other weights are not compatible."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the network: a loader process loads it if it needs it, which is rare."""
        return {name: value for name, value in self.__dict__.items() if name not in ("network", "tokenizer")}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Disable the progress bar of `transformers` while small weights are loaded from disk."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def load_pretrained(load: Callable[[], Any], name: str) -> Any:
    """Return the result of `load`, which loads the folder or Hugging Face hub model `name`.

    Raises ConfigError, with the reason, if a package is missing or the model cannot be loaded.
    """
    try:
        with _no_progress_bar():
            return load()
    except ImportError as error:
        raise ConfigError(f"text prompts need the package {error.name}: {INSTALL}") from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "give a folder with config.json, model.safetensors and tokenizer.json, or a name of the Hugging Face hub"
        raise ConfigError(f"{name} cannot be loaded as a text encoder ({reason}): {remedy}") from error
