"""Predictor and automatic mask generator have the methods, arguments, defaults and result forms of the released classes.

The signatures of MobileSAM and SAM 2, which the test environment does not install, are frozen here; segment_anything's are read
from the installed package, too.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_sam
from PIL import Image
from reference_models import segment_anything
from torch import Tensor

from sam_train.inference import AutomaticMaskGenerator, Predictor
from sam_train.model import Sam
from sam_train.rle import decode_rle, encode_rle

REQUIRED = inspect.Parameter.empty
PROMPT = {"point_coords": None, "point_labels": None, "box": None, "mask_input": None}
OPTIONS = {"multimask_output": True, "return_logits": False}
TORCH = {"point_coords": REQUIRED, "point_labels": REQUIRED, "boxes": None, "mask_input": None, **OPTIONS}
SET_TORCH_IMAGE = {"transformed_image": REQUIRED, "original_image_size": REQUIRED}
BATCH = {"point_coords_batch": None, "point_labels_batch": None, "box_batch": None, "mask_input_batch": None}

# facebookresearch/segment-anything 1.0, segment_anything/predictor.py;
# ChaoningZhang/MobileSAM at 34bbbfd, mobile_sam/predictor.py
SAM = {
    "__init__": {"sam_model": REQUIRED},
    "set_image": {"image": REQUIRED, "image_format": "RGB"},
    "set_torch_image": SET_TORCH_IMAGE,
    "predict": PROMPT | OPTIONS,
    "predict_torch": TORCH,
    "get_image_embedding": {},
    "reset_image": {},
}
# facebookresearch/sam2 at 2b90b9f, sam2/sam2_image_predictor.py, without the arguments of SAM 2's model
SAM_2 = {
    "__init__": {"sam_model": REQUIRED},
    "set_image": {"image": REQUIRED},
    "set_image_batch": {"image_list": REQUIRED},
    "predict": PROMPT | OPTIONS | {"normalize_coords": True},
    "predict_batch": BATCH | OPTIONS | {"normalize_coords": True},
    "get_image_embedding": {},
    "reset_predictor": {},
}
# segment_anything/automatic_mask_generator.py and mobile_sam/automatic_mask_generator.py of the same versions
AUTOMATIC = {
    "__init__": {
        "model": REQUIRED,
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "point_grids": None,
        "min_mask_region_area": 0,
        "output_mode": "binary_mask",
    },
    "generate": {"image": REQUIRED},
}

HEIGHT, WIDTH, GRID, SIZE = 20, 30, 8, 32
"""Image, decoder's grid and model frame."""


def signature(method: Any) -> dict[str, Any]:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


@pytest.mark.parametrize(
    ("ours", "released"),
    [(Predictor, SAM), (Predictor, SAM_2), (AutomaticMaskGenerator, AUTOMATIC)],
    ids=["segment_anything", "sam2", "automatic"],
)
def test_methods_have_the_released_arguments_in_their_order(ours: type, released: dict[str, dict[str, Any]]) -> None:
    for name, expected in released.items():
        found = signature(getattr(ours, name))
        assert list(found.items())[: len(expected)] == list(expected.items()), name
        assert all(default is not REQUIRED for default in list(found.values())[len(expected) :]), name


def test_the_frozen_signatures_are_those_of_the_installed_package() -> None:
    modules = segment_anything()
    for released, frozen in (
        (modules.predictor.SamPredictor, SAM),
        (modules.automatic_mask_generator.SamAutomaticMaskGenerator, AUTOMATIC),
    ):
        methods = {name for name, _ in inspect.getmembers(released, inspect.isfunction) if not name.startswith("_")}
        assert methods - set(frozen) <= {"postprocess_small_regions"}  # a step of `generate`
        assert {name: signature(getattr(released, name)) for name in frozen} == frozen


@pytest.fixture(scope="module")
def model() -> Sam:
    torch.manual_seed(1)
    return small_sam().eval()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def predictor(model: Sam, image: np.ndarray) -> Predictor:
    predictor = Predictor(model)
    predictor.set_image(image)
    return predictor


POINT, POINTS = [[5, 6]], [[5, 6], [20, 11]]
BOX, BOXES = [2, 3, 18, 15], [[2, 3, 18, 15], [8, 1, 25, 19]]
MASK = np.linspace(-3, 3, GRID * GRID, dtype=np.float32).reshape(1, GRID, GRID)
FORMS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "nothing": ({}, ()),
    "point": ({"point_coords": POINT, "point_labels": [1]}, ()),
    "points": ({"point_coords": POINTS, "point_labels": [1, 0]}, ()),
    "points of floats": ({"point_coords": np.array(POINTS, float), "point_labels": np.array([1.0, 0.0])}, ()),
    "box": ({"box": BOX}, ()),
    "box with an axis": ({"box": np.array([BOX])}, ()),
    "box and points": ({"box": BOX, "point_coords": POINTS, "point_labels": [1, 0]}, ()),
    "mask": ({"mask_input": MASK}, ()),
    "point and mask": ({"point_coords": POINT, "point_labels": [1], "mask_input": MASK}, ()),
    "two boxes": ({"box": BOXES}, (2,)),
    "two objects": ({"point_coords": [POINTS, POINTS[::-1]], "point_labels": [[1, 0], [1, 1]]}, (2,)),
    "two boxes and masks": ({"box": BOXES, "mask_input": np.stack([MASK, -MASK])}, (2,)),
    "tensors": ({"point_coords": torch.tensor(POINTS), "point_labels": torch.tensor([1, 0])}, ()),
}


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_predict_returns_numpy_arrays_of_the_released_shapes(predictor: Predictor, form: str, multimask_output: bool) -> None:
    arguments, batch = FORMS[form]
    num = 3 if multimask_output else 1
    masks, scores, logits = predictor.predict(**arguments, multimask_output=multimask_output)
    assert (masks.shape, masks.dtype) == ((*batch, num, HEIGHT, WIDTH), bool)
    assert (scores.shape, scores.dtype) == ((*batch, num), np.float32)
    assert (logits.shape, logits.dtype) == ((*batch, num, GRID, GRID), np.float32)
    full, again, _ = predictor.predict(**arguments, multimask_output=multimask_output, return_logits=True)
    assert full.dtype == np.float32
    assert np.array_equal(full > 0, masks)
    assert np.array_equal(again, scores)
    by_position = predictor.predict(*(arguments.get(name) for name in PROMPT), multimask_output, False)
    assert np.array_equal(by_position[0], masks)


def test_two_objects_equal_single_ones(predictor: Predictor) -> None:
    together = predictor.predict(box=BOXES, multimask_output=False)
    for i, box in enumerate(BOXES):
        for all_of_them, alone in zip(together, predictor.predict(box=box, multimask_output=False), strict=True):
            assert np.allclose(all_of_them[i], alone, atol=1e-5)


def test_fractions_of_the_sides_are_coordinates_without_normalize_coords(predictor: Predictor) -> None:
    fractions = np.array(POINTS) / [WIDTH, HEIGHT]
    expected = predictor.predict(POINTS, [1, 0])[2]
    assert np.allclose(predictor.predict(fractions, [1, 0], normalize_coords=False)[2], expected, atol=1e-5)


def test_no_boxes_give_no_masks(predictor: Predictor) -> None:
    masks, scores, logits = predictor.predict(box=np.zeros((0, 4)))
    assert (masks.shape, scores.shape, logits.shape) == ((0, 3, HEIGHT, WIDTH), (0, 3), (0, 3, GRID, GRID))


def test_predict_torch_takes_coordinates_of_the_model_frame(predictor: Predictor) -> None:
    points, labels = torch.tensor([POINTS, POINTS[::-1]]), torch.tensor([[1, 0], [1, 1]])
    boxes = predictor.transform.apply_boxes_torch(torch.tensor(BOXES), predictor.original_size)
    assert (predictor.original_size, predictor.input_size) == ((HEIGHT, WIDTH), (21, SIZE))
    assert boxes[0].tolist() == pytest.approx([2 * 32 / 30, 3 * 21 / 20, 18 * 32 / 30, 15 * 21 / 20])
    moved = predictor.transform.apply_coords_torch(points, (HEIGHT, WIDTH))
    masks, scores, logits = predictor.predict_torch(moved, labels, boxes)
    expected = predictor.predict(points, labels, BOXES)
    assert all(isinstance(part, Tensor) for part in (masks, scores, logits))
    assert np.array_equal(masks, expected[0])
    assert np.allclose(scores, expected[1], atol=1e-6)
    assert np.allclose(logits, expected[2], atol=1e-5)
    assert predictor.predict_torch(moved, labels, boxes, return_logits=True)[0].dtype == torch.float32
    no_points = predictor.predict_torch(point_coords=None, point_labels=None, boxes=boxes, multimask_output=False)
    assert no_points[0].shape == (2, 1, HEIGHT, WIDTH)


def test_batch_equals_single_images(model: Sam, image: np.ndarray) -> None:
    images = [image, image[:, :14].copy(), image[::-1].copy()]
    together, alone = Predictor(model), Predictor(model)
    together.set_image_batch(images)
    prompts: dict[str, list[Any]] = {
        "point_coords_batch": [POINT, None, POINTS],
        "point_labels_batch": [[1], None, [1, 0]],
        "box_batch": [None, [[2, 3, 12, 15], [1, 1, 9, 9]], BOX],
        "mask_input_batch": [MASK, None, None],
    }
    results = together.predict_batch(**prompts, multimask_output=False)
    assert [len(part) for part in results] == [3, 3, 3]
    for i, pixels in enumerate(images):
        alone.set_image(pixels)
        expected = alone.predict(*(values[i] for values in prompts.values()), multimask_output=False)
        for found, wanted in zip(results, expected, strict=True):
            assert found[i].shape == wanted.shape
            assert np.allclose(found[i], wanted, atol=1e-5)
    with pytest.raises(RuntimeError, match="3 images were set"):
        together.predict(POINT, [1])


def test_image_state(predictor: Predictor, image: np.ndarray) -> None:
    embedding = predictor.get_image_embedding()
    assert embedding.shape == (1, 16, 2, 2)
    assert predictor.features is embedding
    assert predictor.is_image_set
    resized = predictor.transform.apply_image(image)
    other = Predictor(predictor.model)
    other.set_torch_image(torch.from_numpy(resized).permute(2, 0, 1)[None], (HEIGHT, WIDTH))
    assert torch.allclose(other.get_image_embedding(), embedding, atol=1e-5)
    for reset in (predictor.reset_image, other.reset_predictor):
        reset()
    for forgotten in (predictor, other):
        assert not forgotten.is_image_set
        with pytest.raises(RuntimeError, match="no image was set: call set_image first"):
            forgotten.predict(POINT, [1])


def test_gradients_of_a_decoder_on_the_embedding(predictor: Predictor) -> None:
    """Fine-tuning scripts train the decoder on the embeddings that a predictor returns."""
    weight = torch.ones(16, requires_grad=True)
    (predictor.get_image_embedding() * weight[:, None, None]).sum().backward()
    assert weight.grad is not None


def test_every_kind_of_image_gives_the_same_embedding(predictor: Predictor, image: np.ndarray, tmp_path: Path) -> None:
    path, rotated = tmp_path / "image.png", tmp_path / "rotated.png"
    Image.fromarray(image).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # the file holds the image turned by 90 degrees
    Image.fromarray(np.rot90(image).copy()).save(rotated, exif=exif)
    tensor = torch.from_numpy(image)
    expected = predictor.get_image_embedding()
    bgr = image[..., ::-1]
    for kind in (path, str(path), rotated, Image.open(path), tensor, tensor.permute(2, 0, 1)):
        predictor.set_image(kind)
        assert torch.equal(predictor.get_image_embedding(), expected)
        assert predictor.original_size == (HEIGHT, WIDTH)
    predictor.set_image(bgr, image_format="BGR")
    assert torch.equal(predictor.get_image_embedding(), expected)
    predictor.set_image(bgr)
    assert not torch.equal(predictor.get_image_embedding(), expected)


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_generate_returns_annotations_in_each_form(model: Sam, image: np.ndarray, output_mode: str) -> None:
    every = {"pred_iou_thresh": -100.0, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0}
    generator = AutomaticMaskGenerator(model, 2, output_mode=output_mode, **every)  # type: ignore[arg-type]
    annotations, (masks, _) = generator.generate(image), generator.generate_with_counts(image)
    assert len(annotations) == len(masks) > 2
    for annotation, mask in zip(annotations, masks, strict=True):
        segmentation = annotation.pop("segmentation")
        if output_mode == "binary_mask":
            assert segmentation.dtype == bool
            rle = encode_rle(segmentation)
        elif output_mode == "coco_rle":
            rle = segmentation
        else:
            assert segmentation["size"] == [HEIGHT, WIDTH]
            runs = [np.full(length, i % 2, bool) for i, length in enumerate(segmentation["counts"])]
            rle = encode_rle(np.concatenate(runs).reshape(WIDTH, HEIGHT).T)
        assert rle == mask.rle
        pixels = decode_rle(rle, height=HEIGHT, width=WIDTH)
        rows, columns = np.nonzero(pixels.any(1))[0], np.nonzero(pixels.any(0))[0]
        assert annotation == {
            "area": int(pixels.sum()),
            "bbox": [columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0]],
            "predicted_iou": mask.predicted_iou,
            "point_coords": [[mask.prompt_points[0][0], mask.prompt_points[0][1]]],
            "stability_score": mask.stability_score,
            "crop_box": [0, 0, WIDTH, HEIGHT],
        }


def test_point_grids_replace_the_regular_grid(model: Sam, image: np.ndarray) -> None:
    every = {"pred_iou_thresh": -100.0, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0}
    grid = np.array([[0.5, 0.25]])
    found = AutomaticMaskGenerator(model, None, point_grids=[grid], **every).generate(image)  # type: ignore[arg-type]
    assert {tuple(annotation["point_coords"][0]) for annotation in found} == {(15.0, 5.0)}
