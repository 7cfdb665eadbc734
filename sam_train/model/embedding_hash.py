"""The identity of a model's image embeddings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

from sam_train.model.sam import Sam


def embedding_hash(model: Sam) -> str:
    """Return the SHA-256 of everything that determines a model's image embeddings, as hex digits.

    These are the weights of the image encoder as they are now, and the settings that no weight tells: image size, pixel
    statistics, attention heads and windows. Models of different files with the same encoder have the same hash.
    """
    encoder = model.image_encoder
    settings: dict[str, Any] = {
        "encoder": type(encoder).__name__,
        "image_size": model.image_size,
        "pixel_statistics": model.pixel_statistics,
        "high_res_features": model.has_high_res_features,
        "heads": [module.num_heads for module in encoder.modules() if hasattr(module, "num_heads")],
        "windows": [module.window_size for module in encoder.modules() if hasattr(module, "window_size")],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weights in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(_full(weights).float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _full(weights: Tensor) -> Tensor:
    """Return the tensor, gathered if it is sharded over processes."""
    tensor: Tensor = weights.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
