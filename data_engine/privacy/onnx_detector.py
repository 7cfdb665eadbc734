"""A detector in an ONNX file that the user provides, for licence plates or any other object that must be redacted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_engine.privacy.detections import Detections, merge_detections
from data_engine.privacy.onnx_session import OnnxNetwork, read_onnx_file
from data_engine.privacy.pyramid import check_detector_options, detect_at_all_scales
from sam_train.errors import ConfigError

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_GREY = 114  # padding colour with which YOLO is trained
_OUTPUT_LAYOUTS = (
    "[1, N, 6] or [N, 6] (x1, y1, x2, y2, score, class), [N, 7] (batch, x1, y1, x2, y2, class, score)"
    " or [1, 4 + classes, N] (centre x, y, width, height, one score per class)"
)


class OnnxDetector:
    """Detector in an ONNX file with the inputs and outputs of exported YOLO models.

    - Input: exactly one, [1, 3, H, W] RGB, float32 or float16 in 0..1, or uint8; H and W fixed, or dynamic and then `input_px`.
      The image keeps its aspect ratio; the rest of the input, right and below, is padded with grey.
    - Output: the first one; its layout follows from its shape: [1, N, 6] or [N, 6] with x1, y1, x2, y2, score, class (with
      NMS); [N, 7] with batch, x1, y1, x2, y2, class, score (end-to-end YOLOv7 and YOLOv9); [1, 4 + classes, N] with the box's
      centre, width and height, then one score per class (YOLOv8 and later without NMS). Boxes in input pixels, scores 0..1.

    classes: class numbers to redact, None for all. Raises ConfigError if the file is missing or has another input, and at the
    first image if it has another output.
    """

    def __init__(
        self,
        file: str,
        threshold: float = 0.2,
        classes: Sequence[int] | None = None,
        input_px: int = 640,
        overlap: float = 0.2,
    ) -> None:
        check_detector_options(threshold=threshold, overlap=overlap)
        self.threshold, self.classes, self.overlap = threshold, None if classes is None else list(classes), overlap
        self.network = OnnxNetwork(Path(file), read_onnx_file(Path(file)))
        self.input_hw = self._input_hw(input_px)

    def detect(self, image: np.ndarray) -> Detections:
        """Return the detections in an HWC uint8 RGB image of any size."""
        return detect_at_all_scales(image, self._detect_tile, tile_hw=self.input_hw, overlap=self.overlap)

    def identity(self) -> str:
        """Return the settings and the hash of the weights."""
        return f"OnnxDetector {self.threshold} {self.classes} {self.input_hw} {self.overlap} {self.network.sha256}"

    def _input_hw(self, input_px: int) -> tuple[int, int]:
        file, shape, kind = self.network.file, self.network.input_shape, self.network.input_type
        if kind not in _DTYPES or len(shape) != 4 or shape[1] != 3 or (shape[0] not in (1, None) and isinstance(shape[0], int)):
            expected = "[1, 3, H, W] of float32, float16 or uint8"
            raise ConfigError(f"{file} has an input of {kind} {shape}: expected {expected}")
        height, width = (side if isinstance(side, int) else input_px for side in shape[2:])
        return height, width

    def _detect_tile(self, tile: np.ndarray) -> Detections:
        height, width = tile.shape[:2]
        padded = cv2.copyMakeBorder(
            tile, 0, self.input_hw[0] - height, 0, self.input_hw[1] - width, cv2.BORDER_CONSTANT, value=(_GREY,) * 3
        )
        pixels = padded.transpose(2, 0, 1)[None]
        dtype = _DTYPES[self.network.input_type]
        outputs = self.network.run(np.ascontiguousarray(pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)))
        boxes, scores, classes = self._parse_output(np.asarray(outputs[0], dtype=np.float64))
        kept = scores > self.threshold
        if self.classes is not None:
            kept &= np.isin(classes, self.classes)
        self._check_values(boxes[kept], scores)
        return merge_detections([Detections(boxes_xyxy=boxes[kept], scores=scores[kept])])

    def _parse_output(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes XYXY, scores and classes."""
        shape = output.shape
        if output.ndim == 2 and shape[1] == 7:
            return output[:, 1:5], output[:, 6], output[:, 5]
        if shape[-1:] == (6,) and (output.ndim == 2 or (output.ndim == 3 and shape[0] == 1)):
            rows = output.reshape(-1, 6)
            return rows[:, :4], rows[:, 4], rows[:, 5]
        if output.ndim == 3 and shape[0] == 1 and 5 <= shape[1] < shape[2]:
            centre, size, by_class = np.split(output[0].T, [2, 4], axis=1)
            return np.hstack([centre - size / 2, centre + size / 2]), by_class.max(1), by_class.argmax(1)
        raise ConfigError(f"{self.network.file} has an output of shape {list(shape)}: expected {_OUTPUT_LAYOUTS}")

    def _check_values(self, boxes: np.ndarray, scores: np.ndarray) -> None:
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all() and (scores >= 0).all() and (scores <= 1.001).all()):
            got = f"scores of {scores.min():.3g} to {scores.max():.3g}" if len(scores) else "no scores"
            raise ConfigError(f"{self.network.file} returns {got}: expected numbers in 0..1, in the columns of {_OUTPUT_LAYOUTS}")
        sides = boxes[:, 2:] - boxes[:, :2]
        if len(boxes) and ((sides < 0).any() or boxes.max() <= 1.5):
            worst = boxes[np.argmin(sides.min(1))].round(2).tolist()
            raise ConfigError(
                f"{self.network.file} returns the box {worst}: expected pixels of its input, with right and bottom beyond left"
                f" and top, in the columns of {_OUTPUT_LAYOUTS}"
            )
