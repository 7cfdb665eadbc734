"""Tests that text embeddings are computed once, stored beside their shards, and loaded by image and mask."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sample
from tiny_clip import DIM, write_tiny_clip

from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord, Provenance
from sam_train.shards import write_shard
from sam_train.text import ClipEncoder, CropEmbedder, NameEmbedder, TextEmbeddingStore, TextEncoder

NAMES = ("round coffee", "square cat")


class CountingEncoder(ClipEncoder):
    """Counts the texts that it embeds."""

    num_texts = 0

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        self.num_texts += len(texts)
        return super().embed_texts(texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


def sample_with_names(index: int, names: tuple[str, ...], stage: str = "import") -> tuple[ImageRecord, bytes]:
    record, jpeg = make_sample(index)
    masks = [
        replace(mask, provenance=Provenance(stage=stage, checkpoint="", annotator="x", config="", name=name))
        for mask, name in zip(record.masks, names, strict=True)
    ]
    return replace(record, masks=masks), jpeg


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shards" / "sa_000000.tar"
    write_shard(
        path,
        [
            sample_with_names(1, NAMES),
            sample_with_names(2, ("", "square cat"), "assisted_manual"),
            sample_with_names(3, ("", "")),
        ],
    )
    return path


def test_names_are_embedded_with_every_template(folder: str, shard: Path) -> None:
    encoder: TextEncoder = ClipEncoder(folder, "cpu")
    store = TextEmbeddingStore(NameEmbedder(encoder, ["{name}", "a {name} here"]))
    assert store.prepare([shard]) == 3
    first, second, third = (store.load(shard, image_id) for image_id in (1, 2, 3))
    assert [texts.mask_ids.tolist() for texts in (first, second, third)] == [[10, 11], [21], []]
    expected = encoder.embed_texts(["round coffee", "a round coffee here", "square cat", "a square cat here"]).numpy()
    assert np.allclose(first.embeddings.reshape(-1, DIM), expected, atol=1e-3)
    assert np.array_equal(second.embeddings[0], first.embeddings[1])
    assert third.embeddings.shape == (0, 2, DIM)


def test_embeddings_are_computed_once_and_again_for_a_rewritten_shard(folder: str, shard: Path) -> None:
    encoder = CountingEncoder(folder, "cpu")
    store = TextEmbeddingStore(NameEmbedder(encoder))
    store.prepare([shard])
    num_texts, path = encoder.num_texts, store.file_path(shard)
    before = path.read_bytes()
    assert num_texts == 2, "two distinct names"
    again = TextEmbeddingStore(NameEmbedder(encoder))
    assert again.prepare([shard]) == 3
    assert (encoder.num_texts, path.read_bytes()) == (num_texts, before)
    write_shard(shard, [sample_with_names(1, ("wavy moon", "square cat"))])
    assert TextEmbeddingStore(NameEmbedder(encoder)).prepare([shard]) == 2
    assert path.read_bytes() != before


def test_other_encoders_and_templates_have_separate_files(folder: str, shard: Path, tmp_path: Path) -> None:
    other = str(write_tiny_clip(tmp_path / "other", seed=1))
    embedders = [
        NameEmbedder(ClipEncoder(folder)),
        NameEmbedder(ClipEncoder(folder), ["a {name}"]),
        NameEmbedder(ClipEncoder(other)),
    ]
    paths = {TextEmbeddingStore(embedder).file_path(shard).name for embedder in embedders}
    assert len(paths) == 3
    assert {len(name) for name in paths} == {len("sa_000000.text-0123456789ab.safetensors")}
    in_folder = TextEmbeddingStore(embedders[0], str(tmp_path / "embeddings"))
    in_folder.prepare([shard])
    assert in_folder.file_path(shard).parent == tmp_path / "embeddings"
    assert not list(shard.parent.glob("*.safetensors"))


def test_crops_of_large_masks_of_the_configured_stages(folder: str, shard: Path) -> None:
    encoder = ClipEncoder(folder, "cpu")
    store = TextEmbeddingStore(CropEmbedder(encoder, num_crops=4, min_area_px=1, stages=["assisted_manual"]))
    assert store.prepare([shard]) == 2
    assert len(store.load(shard, 1).mask_ids) == 0
    embeddings = store.load(shard, 2)
    assert embeddings.embeddings.shape == (2, 4, DIM)
    assert np.allclose(np.linalg.norm(embeddings.embeddings.astype(np.float32), axis=2), 1, atol=1e-2)
    assert len(np.unique(embeddings.embeddings[0], axis=0)) == 4, "every crop is different"
    again = TextEmbeddingStore(CropEmbedder(ClipEncoder(folder, "cpu"), num_crops=4, min_area_px=1, stages=["assisted_manual"]))
    store.file_path(shard).unlink()
    again.prepare([shard])
    assert np.array_equal(again.load(shard, 2).embeddings, embeddings.embeddings), "crops are drawn from a seed of image and mask"


def test_rejects_shards_without_text_prompts_and_remote_shards(folder: str, shard: Path) -> None:
    with pytest.raises(ConfigError, match="no mask of the 1 shards has a text prompt"):
        TextEmbeddingStore(CropEmbedder(ClipEncoder(folder))).prepare([shard])
    with pytest.raises(ConfigError, match="is a remote shard"):
        TextEmbeddingStore(NameEmbedder(ClipEncoder(folder))).prepare(["s3://bucket/sa_000000.tar"])


def test_missing_or_corrupt_file_is_an_error_of_the_shard(folder: str, shard: Path) -> None:
    store = TextEmbeddingStore(NameEmbedder(ClipEncoder(folder)))
    with pytest.raises(ShardError, match="cannot be read"):
        store.load(shard, 1)
    store.file_path(shard).write_bytes(b"corrupt")
    with pytest.raises(ShardError, match="cannot be read"):
        store.load(shard, 1)
    assert store.prepare([shard]) == 3, "a corrupt file is computed again"


def test_store_is_pickled_without_the_encoder(folder: str, shard: Path) -> None:
    store = TextEmbeddingStore(NameEmbedder(ClipEncoder(folder)))
    store.prepare([shard])
    loaded = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert np.array_equal(loaded.load(shard, 1).embeddings, store.load(shard, 1).embeddings)
    assert "network" not in loaded.embedder.encoder.__dict__


@pytest.mark.parametrize("templates", [[], ["a thing"], ["{name} and {name}"]])
def test_rejects_templates_without_one_name(folder: str, templates: list[str]) -> None:
    with pytest.raises(ConfigError, match="templates"):
        NameEmbedder(ClipEncoder(folder), templates)
