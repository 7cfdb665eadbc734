"""A text prompt is one more sparse token; a model without a text projection is unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_sam
from torch import Tensor

from sam_train.checkpoint import export_weights, initialize_from_checkpoint, load_checkpoint, load_weights, save_checkpoint
from sam_train.errors import CheckpointError, ConfigError
from sam_train.inference import Predictor
from sam_train.inference.prompt_arrays import make_prompts
from sam_train.model import Sam
from sam_train.structures import Prompts
from sam_train.training.distillation import copy_teacher_decoder

TEXT_DIM = 12
OLD_CONFIG = {
    "_target_": "sam_train.model.build.build_sam",
    "image_size": 32,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 2,
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
}
"""Model config as in checkpoints written before text prompts existed."""


@pytest.fixture
def model() -> Sam:
    return small_sam(text_dim=TEXT_DIM).eval()


@pytest.fixture
def image_embeddings() -> Tensor:
    return torch.randn(2, 16, 2, 2)


def words(num: int = 3, dim: int = TEXT_DIM) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(num, dim), dim=1)


def clicks(num: int = 3) -> Prompts:
    return Prompts.from_points(torch.arange(num) % 2, torch.rand(num, 1, 2) * 32, torch.ones(num, 1, dtype=torch.long))


def decode(model: Sam, image_embeddings: Tensor, prompts: Prompts) -> Tensor:
    with torch.no_grad():
        return model.decode(image_embeddings, prompts, multimask_output=True).mask_logits


def test_text_prompt_is_padding_plus_one_token(model: Sam) -> None:
    embeddings = words()
    prompts = Prompts.from_text(torch.tensor([0, 1, 1]), embeddings)
    assert prompts.point_labels.tolist() == [[-1]] * 3
    sparse, _ = model.prompt_encoder(prompts)
    projection = model.prompt_encoder.text_projection
    assert projection is not None
    assert sparse.shape == (3, 2, 16)
    assert torch.equal(sparse[:, 0], model.prompt_encoder.not_a_point_embed.weight.expand(3, -1))
    assert torch.allclose(sparse[:, 1], embeddings @ projection.weight.T + projection.bias)


def test_a_new_token_is_as_large_as_the_others() -> None:
    """The rows of the embeddings start as N(0, 1), so the token of a direction must not be a tenth of that."""
    model = small_sam(text_dim=384, prompt_dim=64, decoder_heads=2)
    sparse, _ = model.prompt_encoder(Prompts.from_text(torch.zeros(50, dtype=torch.long), words(50, 384)))
    assert 0.8 < float(sparse[:, 1].detach().std()) < 1.2


def test_text_and_points_combine_and_survive_selection(model: Sam, image_embeddings: Tensor) -> None:
    prompts = Prompts.from_text(torch.tensor([0, 1, 1]), words())
    more = prompts.with_point(torch.rand(3, 2) * 32, torch.tensor([1, 0, 1]), torch.randn(3, 1, 8, 8))
    assert more.text_embeddings is prompts.text_embeddings
    together, alone = decode(model, image_embeddings, more), decode(model, image_embeddings, more[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert more[torch.tensor([True, False, True])].text_embeddings is not None
    without = decode(model, image_embeddings, replace(more, text_embeddings=None))
    assert (together - without).abs().max() > 1e-3, "the words say something beside a point"


def test_masks_depend_on_text_and_gradients_reach_the_projection(model: Sam, image_embeddings: Tensor) -> None:
    one, other = (Prompts.from_text(torch.zeros(1, dtype=torch.long), words(1)) for _ in range(2))
    assert (decode(model, image_embeddings, one) - decode(model, image_embeddings, other)).abs().max() > 1e-3
    model.decode(image_embeddings, one, multimask_output=True).mask_logits.sum().backward()
    projection = model.prompt_encoder.text_projection
    assert projection is not None
    assert projection.weight.grad is not None
    assert bool((projection.weight.grad != 0).any())


def test_checkpoint_without_text_predicts_identical_bits(tmp_path: Path, image_embeddings: Tensor) -> None:
    torch.manual_seed(7)
    before = small_sam().eval()
    save_checkpoint(tmp_path / "model.pt", before, OLD_CONFIG, {})
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.prompt_encoder.text_dim is None
    assert not [name for name in loaded.state_dict() if "text" in name]
    with_words = small_sam(text_dim=TEXT_DIM).eval()
    said = initialize_from_checkpoint(with_words, tmp_path / "model.pt")
    assert said.endswith("text projection initialized randomly")
    prompts = clicks()
    for model in (loaded, with_words):
        assert torch.equal(decode(model, image_embeddings, prompts), decode(before, image_embeddings, prompts))


def test_rejects_text_prompts_without_text_dim(image_embeddings: Tensor) -> None:
    with pytest.raises(ValueError, match="does not accept text prompts"):
        decode(small_sam().eval(), image_embeddings, Prompts.from_text(torch.tensor([0]), words(1)))


def test_rejects_text_embeddings_of_other_dimensions(model: Sam, image_embeddings: Tensor) -> None:
    with pytest.raises(ValueError, match="7 dimensions, expected 12"):
        decode(model, image_embeddings, Prompts.from_text(torch.tensor([0]), words(1, 7)))


def test_exported_weights_drop_the_text_projection(model: Sam, image_embeddings: Tensor, tmp_path: Path) -> None:
    prompts = clicks()
    for name in ("model.pth", "huggingface"):
        export_weights(model, tmp_path / name)
        plain = load_checkpoint(tmp_path / name)
        assert plain.prompt_encoder.text_dim is None
        assert torch.equal(decode(plain, image_embeddings, prompts), decode(model, image_embeddings, prompts))


def test_rejects_weights_with_text_projection_for_a_model_without(model: Sam) -> None:
    with pytest.raises(CheckpointError, match=r"set model\.text_dim=12"):
        load_weights(small_sam(), model.state_dict(), origin="it")


def test_student_copies_the_teachers_text_projection(model: Sam) -> None:
    student = small_sam(text_dim=TEXT_DIM)
    copy_teacher_decoder(student, model, origin="teacher.pt")
    name = "prompt_encoder.text_projection.weight"
    assert torch.equal(student.state_dict()[name], model.state_dict()[name])
    with pytest.raises(ConfigError, match="text_dim=12"):
        copy_teacher_decoder(small_sam(), model, origin="teacher.pt")


def test_predictor_accepts_text_prompts(model: Sam) -> None:
    predictor, embeddings = Predictor(model), words(2)
    predictor.set_image(torch.randint(0, 256, (24, 30, 3), dtype=torch.uint8).numpy())
    by_words = predictor.predict_prompts(make_prompts(text_embeddings=embeddings), multimask_output=True)
    assert by_words.mask_logits.shape == (2, 3, 8, 8)
    point = make_prompts(text_embeddings=embeddings, points_xy=torch.rand(2, 2) * 20)
    assert point.point_labels.tolist() == [[1, -1]] * 2
    both = predictor.predict_prompts(point, multimask_output=True)
    assert (both.mask_logits - by_words.mask_logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="one row per prompt"):
        make_prompts(text_embeddings=embeddings, points_xy=torch.rand(3, 2))
