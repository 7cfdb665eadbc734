"""SamPredictor and SamAutomaticMaskGenerator of `sam_train.segment_anything` return what the released classes return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from reference_models import reference_mobile_sam, segment_anything

from sam_train.inference import Predictor
from sam_train.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

LARGEST_DISAGREEMENT = 1e-5
"""Share of the pixels of a mask that may differ: a logit that is 0 to rounding."""


@pytest.fixture(scope="module")
def weights(shared_dir: Path) -> Path:
    return shared_dir / "weights" / "mobile_sam" / "mobile_sam.pth"


@pytest.fixture(scope="module")
def image(shared_dir: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(shared_dir / "data" / "sam_examples" / "dog.jpg"))[:, :, ::-1])


@pytest.fixture(scope="module")
def pair(weights: Path, image: np.ndarray) -> tuple[Any, SamPredictor]:
    """The released predictor and ours, with the image set."""
    predictors = (
        segment_anything().predictor.SamPredictor(reference_mobile_sam(weights)),
        SamPredictor(sam_model_registry["vit_t"](checkpoint=weights)),
    )
    for predictor in predictors:
        predictor.set_image(image)
    return predictors


def assert_equal(ours: tuple[Any, ...], released: tuple[Any, ...]) -> None:
    for mine, theirs in zip(ours, released, strict=True):
        assert type(mine) is type(theirs)
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
    masks, scores, logits = (np.asarray(part) for part in ours)
    assert (masks != np.asarray(released[0])).mean() <= LARGEST_DISAGREEMENT
    assert np.allclose(scores, released[1], atol=1e-4)
    assert np.allclose(logits, released[2], atol=1e-2)  # of values up to 30


CLICK = {"point_coords": np.array([[300, 400]]), "point_labels": np.array([1])}
FORMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "point": CLICK,
    "points": {"point_coords": np.array([[300.0, 400.0], [560.0, 220.0]]), "point_labels": np.array([1, 0])},
    "box": {"box": np.array([90, 60, 500, 520])},
    "box with an axis": {"box": np.array([[90, 60, 500, 520]])},
    "box and point": {"box": np.array([90, 60, 500, 520]), **CLICK},
    "single mask": {**CLICK, "multimask_output": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_predict_equals_the_released_predictor(pair: tuple[Any, SamPredictor], form: str) -> None:
    released, ours = pair
    assert_equal(ours.predict(**FORMS[form]), released.predict(**FORMS[form]))


def test_mask_prompts_and_logits_equal_the_released_ones(pair: tuple[Any, SamPredictor]) -> None:
    released, ours = pair
    logits = released.predict(**CLICK)[2][:1]
    for arguments in ({"mask_input": logits}, {**CLICK, "mask_input": logits, "multimask_output": False}):
        assert_equal(ours.predict(**arguments), released.predict(**arguments))
    full, expected = (predictor.predict(**CLICK, return_logits=True)[0] for predictor in (ours, released))
    assert (full.dtype, full.shape) == (expected.dtype, expected.shape)
    assert np.allclose(full, expected, atol=1e-2)


def test_predict_torch_equals_the_released_predictor(pair: tuple[Any, SamPredictor], image: np.ndarray) -> None:
    boxes = torch.tensor([[90, 60, 500, 520], [10, 10, 780, 500], [300, 200, 420, 380]])
    results = []
    for predictor in (pair[1], pair[0]):
        moved = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
        parts = predictor.predict_torch(point_coords=None, point_labels=None, boxes=moved, multimask_output=False)
        results.append(tuple(part.detach().numpy() for part in parts))
    assert_equal(*results)
    for name in ("original_size", "input_size"):
        assert tuple(getattr(pair[0], name)) == tuple(getattr(pair[1], name))
    assert np.array_equal(pair[0].transform.apply_image(image), pair[1].transform.apply_image(image))
    assert torch.allclose(pair[0].get_image_embedding(), pair[1].get_image_embedding(), atol=1e-4)


def test_a_predictor_with_area_resizing_differs_little(pair: tuple[Any, SamPredictor], image: np.ndarray) -> None:
    """docs/api.md states the largest difference."""
    predictor = Predictor(pair[1].model)
    predictor.set_image(image)
    for form in FORMS.values():
        assert 0 < (predictor.predict(**form)[0] != pair[0].predict(**form)[0]).mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_generate_equals_the_released_generator(pair: tuple[Any, SamPredictor], image: np.ndarray, output_mode: str) -> None:
    settings: dict[str, Any] = {"points_per_side": 4, "min_mask_region_area": 50, "output_mode": output_mode}
    ours = SamAutomaticMaskGenerator(pair[1].model, **settings).generate(image)
    released = segment_anything().automatic_mask_generator.SamAutomaticMaskGenerator(pair[0].model, **settings).generate(image)
    assert len(ours) == len(released) >= 4
    order = lambda annotation: (annotation["point_coords"], annotation["predicted_iou"])  # noqa: E731
    for mine, theirs in zip(sorted(ours, key=order), sorted(released, key=order), strict=True):
        assert set(mine) == set(theirs)
        assert {name: type(value) for name, value in mine.items()} == {name: type(value) for name, value in theirs.items()}
        rles = [rle_of(annotation["segmentation"]) for annotation in (mine, theirs)]
        assert coco_mask.iou(rles[:1], rles[1:], [0])[0, 0] >= 0.999
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=1)
        assert mine["area"] == pytest.approx(theirs["area"], rel=1e-3)
        assert mine["crop_box"] == theirs["crop_box"]
        for name, tolerance in (("predicted_iou", 1e-4), ("stability_score", 1e-3), ("point_coords", 1e-3)):
            assert np.allclose(mine[name], theirs[name], atol=tolerance)


def rle_of(segmentation: Any) -> dict[str, Any]:
    """Return a segmentation of any form as COCO compressed RLE."""
    if isinstance(segmentation, np.ndarray):
        return coco_mask.encode(np.asfortranarray(segmentation, np.uint8))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def test_the_registry_refuses_weights_of_another_model(weights: Path) -> None:
    assert set(sam_model_registry) == {"default", "vit_h", "vit_l", "vit_b", "vit_t"}
    with pytest.raises(ValueError, match=r"mobile_sam\.pth is not a vit_b: its image encoder has width TinyViT, expected 768"):
        sam_model_registry["vit_b"](checkpoint=weights)
