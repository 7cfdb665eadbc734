"""Embeddings of masks are made once, beside their shards, and found again by image and mask."""

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


class Counting(ClipEncoder):
    """Counts what it is asked."""

    asked = 0

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        self.asked += len(texts)
        return super().embed_texts(texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


def named(index: int, names: tuple[str, ...], stage: str = "import") -> tuple[ImageRecord, bytes]:
    record, jpeg = make_sample(index)
    masks = [
        replace(mask, provenance=Provenance(stage=stage, checkpoint="", annotator="x", config="", name=name))
        for mask, name in zip(record.masks, names, strict=True)
    ]
    return replace(record, masks=masks), jpeg


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shards" / "sa_000000.tar"
    write_shard(path, [named(1, NAMES), named(2, ("", "square cat"), "assisted_manual"), named(3, ("", ""))])
    return path


def test_names_are_said_in_every_wording(folder: str, shard: Path) -> None:
    encoder: TextEncoder = ClipEncoder(folder, "cpu")
    tables = TextEmbeddingStore(NameEmbedder(encoder, ["{name}", "a {name} here"]))
    assert tables.prepare([shard]) == 3
    first, second, third = (tables.load(shard, image_id) for image_id in (1, 2, 3))
    assert [texts.mask_ids.tolist() for texts in (first, second, third)] == [[10, 11], [21], []]
    expected = encoder.embed_texts(["round coffee", "a round coffee here", "square cat", "a square cat here"]).numpy()
    assert np.allclose(first.embeddings.reshape(-1, DIM), expected, atol=1e-3)
    assert np.array_equal(second.embeddings[0], first.embeddings[1])
    assert third.embeddings.shape == (0, 2, DIM)


def test_a_table_is_made_once_and_anew_for_another_shard(folder: str, shard: Path) -> None:
    encoder = Counting(folder, "cpu")
    tables = TextEmbeddingStore(NameEmbedder(encoder))
    tables.prepare([shard])
    asked, path = encoder.asked, tables.file_path(shard)
    before = path.read_bytes()
    assert asked == 2, "two names, once each"
    again = TextEmbeddingStore(NameEmbedder(encoder))
    assert again.prepare([shard]) == 3
    assert (encoder.asked, path.read_bytes()) == (asked, before)
    write_shard(shard, [named(1, ("wavy moon", "square cat"))])
    assert TextEmbeddingStore(NameEmbedder(encoder)).prepare([shard]) == 2
    assert path.read_bytes() != before


def test_other_encoders_and_wordings_have_tables_of_their_own(folder: str, shard: Path, tmp_path: Path) -> None:
    other = str(write_tiny_clip(tmp_path / "other", seed=1))
    made = [NameEmbedder(ClipEncoder(folder)), NameEmbedder(ClipEncoder(folder), ["a {name}"]), NameEmbedder(ClipEncoder(other))]
    paths = {TextEmbeddingStore(prompts).file_path(shard).name for prompts in made}
    assert len(paths) == 3
    assert {len(name) for name in paths} == {len("sa_000000.text-0123456789ab.safetensors")}
    elsewhere = TextEmbeddingStore(made[0], str(tmp_path / "tables"))
    elsewhere.prepare([shard])
    assert elsewhere.file_path(shard).parent == tmp_path / "tables"
    assert not list(shard.parent.glob("*.safetensors"))


def test_crops_of_large_masks_of_the_wanted_stages(folder: str, shard: Path) -> None:
    encoder = ClipEncoder(folder, "cpu")
    tables = TextEmbeddingStore(CropEmbedder(encoder, num_crops=4, min_area_px=1, stages=["assisted_manual"]))
    assert tables.prepare([shard]) == 2
    assert len(tables.load(shard, 1).mask_ids) == 0
    found = tables.load(shard, 2)
    assert found.embeddings.shape == (2, 4, DIM)
    assert np.allclose(np.linalg.norm(found.embeddings.astype(np.float32), axis=2), 1, atol=1e-2)
    assert len(np.unique(found.embeddings[0], axis=0)) == 4, "every crop is another one"
    again = TextEmbeddingStore(CropEmbedder(ClipEncoder(folder, "cpu"), num_crops=4, min_area_px=1, stages=["assisted_manual"]))
    tables.file_path(shard).unlink()
    again.prepare([shard])
    assert np.array_equal(again.load(shard, 2).embeddings, found.embeddings), "what is drawn is drawn by image and mask"


def test_a_set_without_words_says_what_to_do(folder: str, shard: Path) -> None:
    with pytest.raises(ConfigError, match="no mask of the 1 shards has a text prompt"):
        TextEmbeddingStore(CropEmbedder(ClipEncoder(folder))).prepare([shard])
    with pytest.raises(ConfigError, match="is a remote shard"):
        TextEmbeddingStore(NameEmbedder(ClipEncoder(folder))).prepare(["s3://bucket/sa_000000.tar"])


def test_no_table_is_an_error_of_the_shard(folder: str, shard: Path) -> None:
    tables = TextEmbeddingStore(NameEmbedder(ClipEncoder(folder)))
    with pytest.raises(ShardError, match="cannot be read"):
        tables.load(shard, 1)
    tables.file_path(shard).write_bytes(b"torn")
    with pytest.raises(ShardError, match="cannot be read"):
        tables.load(shard, 1)
    assert tables.prepare([shard]) == 3, "a torn one is made anew"


def test_tables_travel_to_loaders_without_the_encoder(folder: str, shard: Path) -> None:
    tables = TextEmbeddingStore(NameEmbedder(ClipEncoder(folder)))
    tables.prepare([shard])
    loaded = pickle.loads(pickle.dumps(tables))  # noqa: S301
    assert np.array_equal(loaded.load(shard, 1).embeddings, tables.load(shard, 1).embeddings)
    assert "network" not in loaded.embedder.encoder.__dict__


@pytest.mark.parametrize("wordings", [[], ["a thing"], ["{name} and {name}"]])
def test_wordings_without_a_name_are_refused(folder: str, wordings: list[str]) -> None:
    with pytest.raises(ConfigError, match="templates"):
        NameEmbedder(ClipEncoder(folder), wordings)
