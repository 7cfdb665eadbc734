"""The cache returns an embedding only for the same image and checkpoint, from an intact file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sam_train.inference.embedding_cache import EmbeddingCache, hash_image

A, B = "a" * 64, "b" * 64


def image_of_seed(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float32")


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_loads_what_was_saved(tmp_path: Path, dtype: str, bytes_each: int) -> None:
    cache, embedding = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype=dtype), torch.randn(16, 8, 8)
    assert cache.load(image_of_seed()) is None
    saved = cache.save(image_of_seed(), embedding)
    loaded = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype=dtype).load(image_of_seed())
    assert loaded is not None
    assert torch.equal(loaded, saved)
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, embedding, atol=0.05)
    assert cache.embedding_path(image_of_seed()).stat().st_size < bytes_each * embedding.numel() + 600
    assert not cache.rejected


def test_misses_another_image_checkpoint_or_dtype(tmp_path: Path, cache: EmbeddingCache) -> None:
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    assert cache.load(image_of_seed(1)) is None
    assert cache.load(image_of_seed().reshape(8, 6, 3)) is None  # the same bytes
    assert EmbeddingCache(tmp_path, checkpoint_sha256=B, dtype="float32").load(image_of_seed()) is None
    assert EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float16").load(image_of_seed()) is None


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
    """The metadata in the file, not its name, identifies checkpoint and image."""
    cache.save(image_of_seed(), torch.randn(4, 2, 2))
    whole = cache.embedding_path(image_of_seed()).read_bytes()
    cache.embedding_path(image_of_seed(1)).write_bytes(whole)
    assert cache.load(image_of_seed(1)) is None
    other = EmbeddingCache(tmp_path, checkpoint_sha256=B, dtype="float32")
    other.embedding_path(image_of_seed()).parent.mkdir(parents=True)
    other.embedding_path(image_of_seed()).write_bytes(whole)
    assert other.load(image_of_seed()) is None
    cache.embedding_path(image_of_seed(2)).write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    assert cache.load(image_of_seed(2)) is None
    assert cache.rejected == {"of another image": 1, "not an embedding file": 1}
    assert other.rejected == {"of another checkpoint": 1}


def test_rejects_values_beyond_half_precision(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float16")
    with pytest.raises(ValueError, match=r"up to 1e\+05 does not fit into float16: use float32"):
        cache.save(image_of_seed(), torch.full((4, 2, 2), 1e5))
    assert cache.load(image_of_seed()) is None


def test_rejects_invalid_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="int8")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        EmbeddingCache(tmp_path, checkpoint_sha256="../elsewhere")
