"""CLIP (Radford et al. 2021) as the paper's text-to-mask model uses it (section D.5).

CLIP embeds images of objects close to texts that describe them. The model is therefore trained with image embeddings of
objects, of which there are as many as masks, and prompted with text embeddings at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.text.crops import ObjectCrop
from sam_train.text.encoder import CHUNK_SIZE, TextEncoder, load_pretrained

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of pixels in [0, 1] with which CLIP was trained (openai/CLIP, clip.py)."""


class ClipEncoder(TextEncoder):
    """Text and image tower of `transformers.CLIPModel`.

    model: a folder, or a model name of the Hugging Face hub; the paper's is openai/clip-vit-large-patch14-336.
    device: as in `TextEncoder`.

    Raises ConfigError at first use if the model cannot be loaded.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        super().__init__(device)
        self.model = model

    @cached_property
    def network(self) -> nn.Module:
        """The CLIP model in eval mode, on `device`."""

        def load() -> Any:
            from transformers import CLIPModel

            return CLIPModel.from_pretrained(self.model, use_safetensors=True)

        network: nn.Module = load_pretrained(load, self.model)
        return network.eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the same folder or hub model."""

        def load() -> Any:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.model)

        return load_pretrained(load, self.model)

    @property
    def dim(self) -> int:
        """Dimension E of an embedding."""
        return int(self._clip.config.projection_dim)

    @property
    def image_size(self) -> int:
        """Side of the square input image in pixels: 336 for the paper's model."""
        return int(self._clip.config.vision_config.image_size)

    def _embed(self, texts: list[str]) -> Float[Tensor, "n E"]:
        max_length = self._clip.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt").to(self.device)
        pooled = self._clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return self._clip.text_projection(pooled)

    @torch.inference_mode()
    def embed_crops(self, crops: Sequence[ObjectCrop]) -> Float[Tensor, "N E"]:
        """Return image embeddings of objects, of unit norm, on the CPU.

        In the last layer the output token attends only to patches of the object (paper, section D.5): those that it covers by
        more than half or, if there is none, the one that it covers most.
        """
        parts = [self._embed_crops(crops[i : i + CHUNK_SIZE]) for i in range(0, len(crops), CHUNK_SIZE)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu() if parts else torch.zeros(0, self.dim)

    def _embed_crops(self, crops: Sequence[ObjectCrop]) -> Float[Tensor, "n E"]:
        vision = self._clip.vision_model
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in crops])).to(self.device).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (MEAN, STD))
        states = vision.pre_layrnorm(vision.embeddings(((pixels - mean) / std).to(self._clip.dtype)))
        *layers, last = vision.encoder.layers
        for layer in layers:
            states = layer(states, None)
        masks = torch.from_numpy(np.stack([crop.mask for crop in crops])).to(self.device)
        is_object = object_patches(masks, self._clip.config.vision_config.patch_size)
        states = last(states, object_attention_bias(is_object).to(states.dtype))
        return self._clip.visual_projection(vision.post_layernorm(states[:, 0]))

    @property
    def _clip(self) -> Any:
        return self.network


def object_patches(masks: Bool[Tensor, "N S S"], patch_size: int) -> Bool[Tensor, "N L"]:
    """Return which of the L patches, in row-major order, belong to each object: at least one does."""
    coverage = F.avg_pool2d(masks.float()[:, None], patch_size).flatten(1)
    return (coverage > 0.5) | (coverage == coverage.amax(1, keepdim=True))


def object_attention_bias(is_object: Bool[Tensor, "N L"]) -> Float[Tensor, "N 1 T T"]:
    """Return a bias for the attention logits of T = 1 + L tokens, by which CLIP's output token attends to object patches only.

    The output token is the first one. The attention of all other tokens is unchanged.
    """
    num, length = is_object.shape
    bias = torch.zeros(num, 1, 1 + length, 1 + length, device=is_object.device)
    bias[:, 0, 0, 0] = -torch.inf
    bias[:, 0, 0, 1:].masked_fill_(~is_object, -torch.inf)
    return bias
