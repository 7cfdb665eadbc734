"""A cached embedding is the one of this picture and this checkpoint, or it is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sam_train.inference.embedding_cache import EmbeddingCache, hash_image

A, B = "a" * 64, "b" * 64


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float32")


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_what_was_saved_comes_back(tmp_path: Path, dtype: str, bytes_each: int) -> None:
    cache, embedding = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype=dtype), torch.randn(16, 8, 8)
    assert cache.load(picture()) is None
    saved = cache.save(picture(), embedding)
    loaded = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype=dtype).load(picture())
    assert loaded is not None
    assert torch.equal(loaded, saved)
    assert loaded.dtype == torch.float32
    assert torch.allclose(loaded, embedding, atol=0.05)
    assert cache.embedding_path(picture()).stat().st_size < bytes_each * embedding.numel() + 600
    assert not cache.rejected


def test_another_picture_checkpoint_or_dtype_has_none(tmp_path: Path, cache: EmbeddingCache) -> None:
    cache.save(picture(), torch.randn(4, 2, 2))
    assert cache.load(picture(1)) is None
    assert cache.load(picture().reshape(8, 6, 3)) is None  # the same bytes
    assert EmbeddingCache(tmp_path, checkpoint_sha256=B, dtype="float32").load(picture()) is None
    assert EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float16").load(picture()) is None


def test_a_view_and_its_copy_are_one_picture() -> None:
    wide = np.repeat(picture(), 2, 1)
    assert hash_image(wide[:, ::2]) == hash_image(picture())


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_torn_file_is_refused_and_written_anew(cache: EmbeddingCache, length: int) -> None:
    embedding = torch.randn(4, 2, 2)
    cache.save(picture(), embedding)
    path = cache.embedding_path(picture())
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load(picture()) is None
    assert cache.rejected == {"truncated, or not a safetensors file": 1}
    cache.save(picture(), embedding)
    assert cache.load(picture()) is not None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_flipped_bit_is_refused(cache: EmbeddingCache) -> None:
    cache.save(picture(), torch.randn(4, 2, 2))
    path = cache.embedding_path(picture())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cache.load(picture()) is None
    assert cache.rejected == {"changed since it was written": 1}


def test_files_under_another_name_are_refused(tmp_path: Path, cache: EmbeddingCache) -> None:
    """Moved by hand, or a collision of folders: the inside says what it is."""
    cache.save(picture(), torch.randn(4, 2, 2))
    whole = cache.embedding_path(picture()).read_bytes()
    cache.embedding_path(picture(1)).write_bytes(whole)
    assert cache.load(picture(1)) is None
    other = EmbeddingCache(tmp_path, checkpoint_sha256=B, dtype="float32")
    other.embedding_path(picture()).parent.mkdir(parents=True)
    other.embedding_path(picture()).write_bytes(whole)
    assert other.load(picture()) is None
    cache.embedding_path(picture(2)).write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    assert cache.load(picture(2)) is None
    assert cache.rejected == {"of another image": 1, "not an embedding file": 1}
    assert other.rejected == {"of another checkpoint": 1}


def test_values_beyond_half_precision_are_named(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="float16")
    with pytest.raises(ValueError, match=r"up to 1e\+05 does not fit into float16: use float32"):
        cache.save(picture(), torch.full((4, 2, 2), 1e5))
    assert cache.load(picture()) is None


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        EmbeddingCache(tmp_path, checkpoint_sha256=A, dtype="int8")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        EmbeddingCache(tmp_path, checkpoint_sha256="../elsewhere")
