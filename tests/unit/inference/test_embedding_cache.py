"""The cache returns an embedding only for the same image and encoder, from an intact file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from sam_train.inference.embedding_cache import EmbeddingCache, hash_image
from sam_train.model.build import build_mobile_sam, build_sam
from sam_train.model.embedding_hash import embedding_hash

TINY: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "prompt_dim": 16,
}
A, B = (build_sam(**TINY, decoder_mlp_dim=16) for _ in range(2))  # random weights: two encoders


def image_of_seed(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path, A, dtype="float32")


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_loads_what_was_saved(tmp_path: Path, dtype: str, bytes_each: int) -> None:
    cache, embedding = EmbeddingCache(tmp_path, A, dtype=dtype), torch.randn(16, 8, 8)
    assert cache.load(image_of_seed()) is None
    saved = cache.save(image_of_seed(), embedding)
    loaded = EmbeddingCache(tmp_path, A, dtype=dtype).load(image_of_seed())
    assert loaded is not None
    assert torch.equal(loaded, saved)
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, embedding, atol=0.05)
    assert cache.embedding_path(image_of_seed()).stat().st_size < bytes_each * embedding.numel() + 600
    assert not cache.rejected


def test_misses_another_image_model_or_dtype(tmp_path: Path, cache: EmbeddingCache) -> None:
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    assert cache.load(image_of_seed(1)) is None
    assert cache.load(image_of_seed().reshape(8, 6, 3)) is None  # the same bytes
    assert EmbeddingCache(tmp_path, B, dtype="float32").load(image_of_seed()) is None
    assert EmbeddingCache(tmp_path, A, dtype="float16").load(image_of_seed()) is None


def test_hash_of_a_view_equals_that_of_its_copy() -> None:
    wide = np.repeat(image_of_seed(), 2, 1)
    assert hash_image(wide[:, ::2]) == hash_image(image_of_seed())


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_rejects_and_overwrites_a_truncated_file(cache: EmbeddingCache, length: int) -> None:
    embedding = torch.randn(4, 2, 2)
    cache.save(image_of_seed(), embedding)
    path = cache.embedding_path(image_of_seed())
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load(image_of_seed()) is None
    assert cache.rejected == {"truncated, or not a safetensors file": 1}
    cache.save(image_of_seed(), embedding)
    assert cache.load(image_of_seed()) is not None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_rejects_a_flipped_bit(cache: EmbeddingCache) -> None:
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    path = cache.embedding_path(image_of_seed())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cache.load(image_of_seed()) is None
    assert cache.rejected == {"changed since it was written": 1}


def test_rejects_renamed_files(tmp_path: Path, cache: EmbeddingCache) -> None:
    """The metadata in the file, not its name, identifies model and image."""
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    whole = cache.embedding_path(image_of_seed()).read_bytes()
    cache.embedding_path(image_of_seed(1)).write_bytes(whole)
    assert cache.load(image_of_seed(1)) is None
    other = EmbeddingCache(tmp_path, B, dtype="float32")
    other.embedding_path(image_of_seed()).parent.mkdir(parents=True)
    other.embedding_path(image_of_seed()).write_bytes(whole)
    assert other.load(image_of_seed()) is None
    cache.embedding_path(image_of_seed(2)).write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    assert cache.load(image_of_seed(2)) is None
    assert cache.rejected == {"of another image": 1, "not an embedding file": 1}
    assert other.rejected == {"of another model": 1}


def test_rejects_values_beyond_half_precision(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, A, dtype="float16")
    with pytest.raises(ValueError, match=r"up to 1e\+05 does not fit into float16: use float32"):
        cache.save(image_of_seed(), torch.full((4, 2, 2), 1e5))
    assert cache.load(image_of_seed()) is None


def test_rejects_invalid_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        EmbeddingCache(tmp_path, A, dtype="int8")


def test_models_are_told_apart_by_what_decides_their_embeddings() -> None:
    """Weights of the decoder do not count; settings of the encoder that no weight tells do."""
    same = build_sam(**TINY, decoder_mlp_dim=16)
    same.image_encoder.load_state_dict(A.image_encoder.state_dict())
    assert embedding_hash(same) == embedding_hash(A) != embedding_hash(B)
    for changes in ({"pixel_statistics": "image"}, {"num_heads": 4, "use_rel_pos": False}, {"use_rel_pos": False}):
        other = build_sam(**TINY | {"decoder_mlp_dim": 16} | changes)
        other.image_encoder.load_state_dict(A.image_encoder.state_dict(), strict=False)
        assert embedding_hash(other) != embedding_hash(A)
    torch.manual_seed(0)
    sizes = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_sizes": [7, 3, 5, 2]}
    small, large = (build_mobile_sam(image_size=size, **sizes, prompt_dim=16, decoder_mlp_dim=16) for size in (64, 128))
    large.load_state_dict(small.state_dict())  # no weight of this encoder depends on the image size
    assert embedding_hash(small) != embedding_hash(large)


def test_embeddings_of_earlier_versions_are_not_read(cache: EmbeddingCache) -> None:
    """They were named by the hash of a file that may not be the one whose weights encoded."""
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    path = cache.embedding_path(image_of_seed())
    with safe_open(path, "pt") as file:
        metadata, embedding = file.metadata(), file.get_tensor("embedding")
    old = {**metadata, "format": "sam-train/embedding-1", "checkpoint": metadata["model"]}
    path.write_bytes(safetensors.torch.save({"embedding": embedding}, old))
    assert cache.load(image_of_seed()) is None
    assert cache.rejected == {"not an embedding file": 1}
