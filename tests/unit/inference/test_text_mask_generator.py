"""Text prompts give at most one mask each, with the prompt as its name; dropped masks are counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_sam
from torch import Tensor, nn

from sam_train.errors import ConfigError
from sam_train.inference import Predictor, TextMaskGenerator
from sam_train.inference.prompt_arrays import make_prompts
from sam_train.rle import decode_rle
from sam_train.text import TextEncoder

DIM = 12
TEXTS = ["coffee", "cat", "moon"]
ALL: dict[str, Any] = {"pred_iou_thresh": -100.0, "stability_score_thresh": -1.0}


class Letters(TextEncoder):
    """A text encoder whose embeddings are random vectors seeded by the text."""

    @property
    def dim(self) -> int:
        return DIM

    @property
    def network(self) -> nn.Module:
        return nn.Linear(1, 1).requires_grad_(False).apply(lambda layer: nn.init.ones_(layer.weight))  # type: ignore[arg-type, return-value]

    def _embed(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def test_every_text_prompt_has_its_mask(image: np.ndarray) -> None:
    model, encoder = small_sam(text_dim=DIM).eval(), Letters()
    found, dropped = TextMaskGenerator(text_prompts=TEXTS, encoder=encoder, **ALL).generate(model, image)
    predictor = Predictor(model)
    predictor.set_image(image)
    best = predictor.predict_prompts(make_prompts(text_embeddings=encoder.embed_texts(TEXTS)), multimask_output=True).best()
    masks = predictor.masks_to_image(best.mask_logits)[:, 0].numpy()
    expected = {word: mask for word, mask in zip(TEXTS, masks, strict=True) if mask.any()}
    assert {mask.name for mask in found} == expected.keys()
    assert len(expected) >= 2
    assert dropped["empty"] == len(TEXTS) - len(expected)
    for mask in found:
        assert np.array_equal(decode_rle(mask.rle, height=24, width=30), expected[mask.name])
        assert mask.prompt_points == ()
        assert mask.area == expected[mask.name].sum()
    scores = [mask.predicted_iou for mask in found]
    assert scores == sorted(scores, reverse=True)


def test_drops_and_counts_unconfident_masks(image: np.ndarray) -> None:
    model = small_sam(text_dim=DIM).eval()
    unsure = TextMaskGenerator(text_prompts=TEXTS, encoder=Letters(), pred_iou_thresh=1.0, stability_score_thresh=-1)
    assert unsure.generate(model, image) == ([], Counter(predicted_iou=3, stability=0))
    shaky = TextMaskGenerator(text_prompts=TEXTS, encoder=Letters(), pred_iou_thresh=-100, stability_score_thresh=1.0)
    assert shaky.generate(model, image) == ([], Counter(predicted_iou=0, stability=3))


def test_removes_small_regions(image: np.ndarray) -> None:
    found, dropped = TextMaskGenerator(text_prompts=TEXTS, encoder=Letters(), min_region_area_px=10_000, **ALL).generate(
        small_sam(text_dim=DIM).eval(), image
    )
    assert found == []
    assert dropped["small_region"] + dropped["empty"] == 3


@pytest.mark.parametrize("words", [[], "cat", ["cat", " "]])
def test_rejects_missing_and_empty_text_prompts(words: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of texts"):
        TextMaskGenerator(text_prompts=words, encoder=Letters())


def test_rejects_a_model_without_text_prompts(image: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="takes no text prompts"):
        TextMaskGenerator(text_prompts=TEXTS, encoder=Letters()).generate(small_sam(), image)
