"""An invalid argument raises a ValueError that names the argument, what is expected and what came."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_sam
from jaxtyping import config
from torch import Tensor, nn

from sam_train.errors import ConfigError
from sam_train.inference import (
    AutomaticMaskGenerator,
    EmbeddingCache,
    GridMaskGenerator,
    Predictor,
    TextMaskGenerator,
    make_prompts,
)
from sam_train.model import Sam
from sam_train.model.devices import resolve_device
from sam_train.structures import Prompts
from sam_train.text import TextEncoder

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
POINT = {"point_coords": [[5, 6]], "point_labels": [1]}
NAN = float("nan")


@pytest.fixture(autouse=True)
def _without_type_checker() -> Iterator[None]:
    """Outside of the tests no type checker sees the arguments first."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model() -> Sam:
    return small_sam().eval()


@pytest.fixture
def predictor(model: Sam) -> Predictor:
    predictor = Predictor(model)
    predictor.set_image(IMAGE)
    return predictor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point_coords": [[5, 6]]}, "point_labels must be given with point_coords"),
        ({"point_labels": [1]}, "point_labels was given without point_coords"),
        ({"point_coords": [5, 6], "point_labels": [1]}, r"point_coords must be of shape N x 2 or N x P x 2.*got \(2,\)"),
        ({"point_coords": [[5, 6, 1]], "point_labels": [1]}, r"point_coords must be of shape.*got \(1, 3\)"),
        ({"point_coords": [[5, NAN]], "point_labels": [1]}, "point_coords must be finite, got nan"),
        ({"point_coords": [[[1, 2]], [[3, 4], [5, 6]]], "point_labels": [[1]]}, "point_coords must be an array of numbers"),
        ({"point_coords": "here", "point_labels": [1]}, "point_coords must be an array of numbers.*got 'here'"),
        ({"point_coords": [[5, 6]], "point_labels": [-2]}, r"point_labels must be integers from -1 to 3.*got -2\.0"),
        ({"point_coords": [[5, 6]], "point_labels": [0.7]}, r"point_labels must be integers.*got 0\.7"),
        ({"point_coords": [[5, 6]], "point_labels": [5]}, r"point_labels must be integers.*got 5\.0"),
        (
            {"point_coords": [[5, 6]], "point_labels": [[1]]},
            r"point_labels must be one label for each.* of shape 1, got \(1, 1\)",
        ),
        ({"box": [18, 3, 2, 15]}, r"box must be left, top, right, bottom with left <= right.*got \[18\.0, 3\.0, 2\.0, 15\.0\]"),
        ({"box": [2, 3, 18, 15, 0.9]}, r"box must be 4 numbers or of shape B x 4.*got \(5,\)"),
        ({"box": [[[2, 3, 18, 15]]]}, r"box must be 4 numbers or of shape B x 4.*got \(1, 1, 4\)"),
        ({"box": [2, 3, np.inf, 15]}, "box must be finite, got inf"),
        ({"box": [[2, 3, 18, 15]] * 2, **POINT}, "expected all parts of the prompts to have the same length.*'box': 2"),
        (
            {"mask_input": np.zeros((1, 20, 30), np.float32)},
            r"mask_input must be logits of shape N x 1.*got \(1, 1, 20, 30\)",
        ),
        ({"mask_input": np.zeros((1, 32, 32), np.float32)}, "mask_input must be logits of 8 x 8.*mask_to_logits.*got 32 x 32"),
        ({"mask_input": np.zeros((1, 8, 8), bool)}, "mask_input must be logits of float.*mask_to_logits.*got bool"),
        ({**POINT, "multimask_output": "no"}, "multimask_output must be True or False, got 'no'"),
        ({**POINT, "return_logits": 1}, "return_logits must be True or False, got 1"),
        ({**POINT, "normalize_coords": None}, "normalize_coords must be True or False, got None"),
    ],
)
def test_prompts_of_predict(predictor: Predictor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes_xyxy": [2, 3, 18, 15]}, r"boxes_xyxy must be of shape N x 4.*got \(4,\)"),
        ({"boxes_xyxy": [[18, 3, 2, 15]]}, "boxes_xyxy must be left, top, right, bottom"),
        ({"points_xy": [[5, 6]], "point_labels": [[1, 0]]}, "point_labels must be one label for each point"),
        ({"point_labels": [1], "boxes_xyxy": [[2, 3, 18, 15]]}, "point_labels was given without points_xy"),
        ({"points_xy": [[5, 6]], "image_index": [0.9]}, "image_index must be one index of an image"),
        ({"points_xy": [[5, 6]], "image_index": [-1]}, "image_index must be one index of an image"),
        ({"text_embeddings": np.zeros(4)}, "text_embeddings must be of shape N x E"),
    ],
)
def test_parts_of_make_prompts(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_prompts(**arguments)


def test_prompts_that_were_not_made_by_make_prompts(predictor: Predictor) -> None:
    def prompts(x: float, label: int) -> Prompts:
        labels = torch.tensor([[label]])
        return Prompts(image_index=torch.zeros(1, dtype=torch.long), points_xy=torch.tensor([[[x, 5.0]]]), point_labels=labels)

    with pytest.raises(ValueError, match=r"point_labels must be from -1 to 3, got \[4\]"):
        predictor.predict_prompts(prompts(5, 4), multimask_output=True)
    with pytest.raises(ValueError, match="points_xy must be finite, got nan"):
        predictor.predict_prompts(prompts(NAN, 1), multimask_output=True)
    with pytest.raises(ValueError, match=r"prompts must be Prompts .* or a list of them"):
        predictor.predict_prompts([], multimask_output=True)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[..., 0], r"image must be H x W x 3 uint8 RGB.*got shape \(20, 30\) of uint8"),
        (IMAGE.astype(np.float32), "got shape .* of float32"),
        (IMAGE.tolist(), "image must be H x W x 3 uint8 RGB.*got a list"),
        (None, "image must be H x W x 3 uint8 RGB.*got a NoneType"),
        (IMAGE[:0], "image must have at least one pixel"),
    ],
)
def test_images(model: Sam, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(model).set_image(image)


def test_image_arguments(model: Sam, predictor: Predictor, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="image_format must be one of 'RGB', 'BGR', got 'GRAY'"):
        predictor.set_image(IMAGE, "GRAY")
    (tmp_path / "image.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"image: image\.png is not a JPEG, PNG"):
        predictor.set_image(tmp_path / "image.png")
    with pytest.raises(FileNotFoundError):
        predictor.set_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="image_list must be a list of at least one image"):
        predictor.set_image_batch(IMAGE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image 1 must be H x W x 3"):
        predictor.set_image_batch([IMAGE, IMAGE[0]])
    predictor.set_image_batch([IMAGE, IMAGE])
    with pytest.raises(ValueError, match="box_batch must be a list with one entry for each of the 2 images"):
        predictor.predict_batch(box_batch=[[2, 3, 18, 15]])
    with pytest.raises(ValueError, match=r"sam_model must be a Sam \(load_checkpoint.*, got 'mobile_sam.pth'"):
        Predictor("mobile_sam.pth")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resampling must be one of 'area', 'bilinear', got 'lanczos'"):
        Predictor(model, resampling="lanczos")  # type: ignore[arg-type]


def test_masks_for_mask_to_logits(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="mask must be a binary mask of the image's size, 20 x 30, got shape"):
        predictor.mask_to_logits(np.zeros((8, 8), bool))
    with pytest.raises(ValueError, match=r"mask must be a binary mask .*values 0 to 255"):
        predictor.mask_to_logits(np.arange(600).reshape(20, 30) % 256)


GRID_VALUES: list[tuple[str, Any]] = [
    ("points_per_side", -1),
    ("points_per_side", 2.5),
    ("points_per_batch", 0),
    ("pred_iou_thresh", 88),
    ("pred_iou_thresh", NAN),
    ("stability_score_thresh", 95),
    ("stability_score_offset", -1.0),
    ("box_nms_thresh", 70),
    ("crop_nms_thresh", -0.1),
    ("crop_overlap_ratio", 2),
    ("crop_layers", 7),
    ("crop_points_downscale", 0),
    ("min_region_area_px", -5),
    ("max_area_fraction", 95),
    ("nms_by", "mask"),
    ("resampling", "lanczos"),
    ("nested_share", "much"),
    ("point_grids", []),
]


@pytest.mark.parametrize(("name", "value"), GRID_VALUES)
def test_settings_of_the_grid_generator(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got "):
        GridMaskGenerator(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0),
        ("pred_iou_thresh", 88),
        ("crop_n_layers", -1),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -5),
        ("output_mode", "rle"),
    ],
)
def test_settings_of_the_automatic_generator(model: Sam, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        AutomaticMaskGenerator(model, **{name: value})


def test_what_the_automatic_generator_needs(model: Sam) -> None:
    with pytest.raises(ValueError, match="model must be a Sam"):
        AutomaticMaskGenerator(Predictor(model))  # type: ignore[arg-type]
    for arguments in ({"points_per_side": None}, {"point_grids": [np.zeros((1, 2))]}):
        with pytest.raises(ValueError, match="give exactly one of points_per_side and point_grids"):
            AutomaticMaskGenerator(model, **arguments)  # type: ignore[arg-type]


class Zeros(TextEncoder):
    """A text encoder without a network."""

    dim = 4
    network = nn.Identity()

    def _embed(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 4)


def test_texts() -> None:
    with pytest.raises(ValueError, match=r"texts must be a list of texts, got the str 'cat': pass \['cat'\]"):
        Zeros().embed_texts("cat")
    with pytest.raises(ValueError, match="pred_iou_thresh must be a number of at most 1, got 88"):
        TextMaskGenerator(text_prompts=["cat"], encoder=Zeros(), pred_iou_thresh=88)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == torch.device(expected)
    for device in ("meta", "gpu"):
        with pytest.raises(ConfigError, match=f"device={device} .*use device=cpu or device=auto"):
            resolve_device(device)


def test_paths_may_be_str(tmp_path: Any) -> None:
    cache = EmbeddingCache(str(tmp_path), small_sam())
    assert cache.load(IMAGE) is None
