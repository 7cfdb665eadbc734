"""Image embeddings of an encoder that is not trained, cached on disk: of the fine-tuned model itself, or of a teacher."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.model import Sam
from sam_train.structures import Batch


class FrozenEncoder:
    """Computes the image embeddings of a model whose image encoder is not trained, and disables the encoder's gradients.

    cache: where embeddings are stored; None computes them anew each time. The cache key is the image in the model frame, so each
        augmented version is stored on its own: flips and quarter turns make eight of each image, and with random scale no two
        versions are equal.
    """

    def __init__(self, model: Sam, cache: EmbeddingCache | None) -> None:
        self.model, self.cache = model, cache
        model.image_encoder.requires_grad_(requires_grad=False)

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
