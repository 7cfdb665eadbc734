"""A detector of one input size at all scales of a picture of any size.

The picture is halved until it fits a tile, and every level is cut into tiles that overlap. What is no larger than the overlap
lies whole in some tile of its level, and what is larger does so further up, where it still has half of that. So nothing is too
small because the picture is large, nothing too large for the network, and the memory is that of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from data_engine.privacy.detections import Detections, merge_detections
from sam_train.errors import ConfigError


def detect_at_all_scales(
    image: np.ndarray, look: Callable[[np.ndarray], Detections], *, tile_hw: tuple[int, int], overlap: float
) -> Detections:
    """All that `look` finds in HWC uint8 RGB pictures of at most `tile_hw`, in the frame of `image`, each object once.

    overlap: of two neighbouring tiles, as a share of a tile's shorter side.
    """
    found = []
    for level in levels(image, tile_hw):
        scale_xy = np.array([image.shape[1] / level.shape[1], image.shape[0] / level.shape[0]])
        for left, top in tiles(level.shape[:2], tile_hw, int(overlap * min(tile_hw))):
            part = look(np.ascontiguousarray(level[top : top + tile_hw[0], left : left + tile_hw[1]]))
            boxes = (part.boxes_xyxy + np.array([left, top, left, top])) * np.tile(scale_xy, 2)
            found.append(Detections(boxes_xyxy=boxes, scores=part.scores))
    return merge_detections(found)


def levels(image: np.ndarray, tile_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """The picture, half of it, a quarter, down to the first that fits one tile."""
    yield image
    while image.shape[0] > tile_hw[0] or image.shape[1] > tile_hw[1]:
        height, width = (max(1, round(side / 2)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        yield image


def tiles(image_hw: tuple[int, int], tile_hw: tuple[int, int], overlap_px: int) -> list[tuple[int, int]]:
    """Left and top of each tile, row by row; the last of a row and of a column end with the picture."""
    tops, lefts = (_starts(side, tile, overlap_px) for side, tile in zip(image_hw, tile_hw, strict=True))
    return [(left, top) for top in tops for left in lefts]


def _starts(side: int, tile: int, overlap_px: int) -> list[int]:
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap_px), side - tile]


def check_detector_options(*, threshold: float, overlap: float) -> None:
    """Raise ConfigError for a threshold or an overlap of tiles out of range."""
    if not 0 < threshold < 1:
        raise ConfigError(f"a detector's threshold is {threshold}: expected a score above 0 and below 1")
    if not 0 <= overlap <= 0.5:
        raise ConfigError(f"a detector's overlap is {overlap}: expected 0 to 0.5 of a tile")
