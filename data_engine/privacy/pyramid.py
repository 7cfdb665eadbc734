"""Multi-scale tiled detection: applies a detector of fixed input size to an image of any size.

The image is halved until it fits into a tile, and every level of this pyramid is divided into overlapping tiles. An object that
is not larger than the overlap lies completely in some tile of its level; a larger object does so in a coarser level, where it
still has at least half the size of the overlap. So no object is too small because the image is large, none is too large for the
network, and the memory is that of one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from data_engine.privacy.detections import Detections, merge_detections
from sam_train.errors import ConfigError


def detect_at_all_scales(
    image: np.ndarray, detect_tile: Callable[[np.ndarray], Detections], *, tile_hw: tuple[int, int], overlap: float
) -> Detections:
    """Return all detections in the frame of `image`, each object once.

    detect_tile: detector of HWC uint8 RGB images of at most `tile_hw`. overlap: overlap of neighbouring tiles, as a fraction of a
        tile's shorter side.
    """
    detections = []
    for level in image_pyramid(image, tile_hw):
        scale_xy = np.array([image.shape[1] / level.shape[1], image.shape[0] / level.shape[0]])
        for left, top in tile_origins(level.shape[:2], tile_hw, int(overlap * min(tile_hw))):
            tile = detect_tile(np.ascontiguousarray(level[top : top + tile_hw[0], left : left + tile_hw[1]]))
            boxes = (tile.boxes_xyxy + np.array([left, top, left, top])) * np.tile(scale_xy, 2)
            detections.append(Detections(boxes_xyxy=boxes, scores=tile.scores))
    return merge_detections(detections)


def image_pyramid(image: np.ndarray, tile_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the image, then the image at half size, quarter size and so on, down to the first one that fits into a tile."""
    yield image
    while image.shape[0] > tile_hw[0] or image.shape[1] > tile_hw[1]:
        height, width = (max(1, round(side / 2)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        yield image


def tile_origins(image_hw: tuple[int, int], tile_hw: tuple[int, int], overlap_px: int) -> list[tuple[int, int]]:
    """Return left and top of each tile, row by row. The last tile of a row or column ends at the border of the image."""
    tops, lefts = (_tile_starts(side, tile, overlap_px) for side, tile in zip(image_hw, tile_hw, strict=True))
    return [(left, top) for top in tops for left in lefts]


def _tile_starts(side: int, tile: int, overlap_px: int) -> list[int]:
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap_px), side - tile]


def check_detector_options(*, threshold: float, overlap: float) -> None:
    """Raise ConfigError if the threshold or the overlap of tiles is out of range."""
    if not 0 < threshold < 1:
        raise ConfigError(f"a detector's threshold is {threshold}: expected a score above 0 and below 1")
    if not 0 <= overlap <= 0.5:
        raise ConfigError(f"a detector's overlap is {overlap}: expected 0 to 0.5 of a tile")
