"""Image embeddings of an encoder that is not trained, cached on disk: of the fine-tuned model itself, or of a teacher."""

from __future__ import annotations

from functools import cached_property
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.model import Sam
from sam_train.structures import Batch


class FrozenEncoder:
    """Computes the image embeddings of a model whose image encoder is not trained, and disables the encoder's gradients.

    cache_folder: where embeddings are stored (`EmbeddingCache`); None computes them anew each time. They are stored by the
        weights that encode, those of the first call: the weights of a resumed run are loaded after this object was made. The
        other part of the key is the image in the model frame, so each augmented version is stored on its own: flips and quarter
        turns make eight of each image, and with random scale no two versions are equal.
    cache_dtype: precision of the stored embeddings.
    """

    def __init__(self, model: Sam, cache_folder: str | PathLike[str] | None = None, *, cache_dtype: str = "float16") -> None:
        self.model, self.cache_folder, self.cache_dtype = model, cache_folder, cache_dtype
        model.image_encoder.requires_grad_(requires_grad=False)

    @cached_property
    def cache(self) -> EmbeddingCache | None:
        """The cache of the model's embeddings, None without a folder. It is opened when the first image is encoded."""
        return None if self.cache_folder is None else EmbeddingCache(self.cache_folder, self.model, dtype=self.cache_dtype)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B E h w"]:
        """Return what `Sam.encode_images` returns, without dropped paths and in the cache's precision."""
        images = [_unpadded_image(batch, i) for i in range(len(batch.keys))]
        embeddings = [self.cache.load(image) if self.cache else None for image in images]
        if missing := [i for i, embedding in enumerate(embeddings) if embedding is None]:
            self.model.to(batch.images.device)  # Lightning does not move a teacher
            self.model.image_encoder.eval()  # train() on the enclosing module has set training mode
            for i, embedding in zip(
                missing, self.model.encode_images(batch.images[missing], batch.sizes_hw[missing]), strict=True
            ):
                embeddings[i] = self.cache.save(images[i], embedding) if self.cache else embedding
        return torch.stack([embedding.to(batch.images.device) for embedding in embeddings if embedding is not None])


def _unpadded_image(batch: Batch, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image without padding: padding and a black margin of the image itself must have different cache keys."""
    height, width = batch.sizes_hw[index].tolist()
    return batch.images[index, :, :height, :width].permute(1, 2, 0).cpu().numpy()
