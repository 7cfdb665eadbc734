"""An image encoder that is not trained: each picture is encoded once, and read from the disk from then on.

Of the model itself, whose decoder alone is fine-tuned, or of a teacher.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.model import Sam
from sam_train.structures import Batch


class FrozenEncoder:
    """Image embeddings of a model whose image encoder is not trained; takes its gradients away.

    cache: where embeddings are kept, None to compute them anew each time. They are found by the picture in the model frame, so
        an augmented picture is another one: mirror images and quarter turns make eight of each, a random scale no two alike.
    """

    def __init__(self, model: Sam, cache: EmbeddingCache | None) -> None:
        self.model, self.cache = model, cache
        model.image_encoder.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B E h w"]:
        """As `Sam.encode_images`, without dropped paths, and rounded as the cache keeps them."""
        pictures = [_picture(batch, i) for i in range(len(batch.keys))]
        found = [self.cache.load(picture) if self.cache else None for picture in pictures]
        if missing := [i for i, embedding in enumerate(found) if embedding is None]:
            self.model.to(batch.images.device)  # a teacher's place, whom nobody else moves
            self.model.image_encoder.eval()  # whoever calls train() on the whole model means the rest
            for i, embedding in zip(
                missing, self.model.encode_images(batch.images[missing], batch.sizes_hw[missing]), strict=True
            ):
                found[i] = self.cache.save(pictures[i], embedding) if self.cache else embedding
        return torch.stack([embedding.to(batch.images.device) for embedding in found if embedding is not None])


def _picture(batch: Batch, index: int) -> np.ndarray:
    """Without the padding: black below a picture and a black margin in it are two things."""
    height, width = batch.sizes_hw[index].tolist()
    return batch.images[index, :, :height, :width].permute(1, 2, 0).cpu().numpy()
