"""Irreversible redaction of boxes: blur, pixelate or fill.

A Gaussian blur is a convolution: if its kernel is known, or is learnt from pairs of faces, much of the hidden detail can be
recovered. The strength of the redaction here is therefore not a kernel but a number of values. `pixelate` and `blur` both show
at most `cells` x `cells` mean colours of the box, in 8 bits, each over at least MIN_CELL_PX pixels per side, whatever the size
of the box: `pixelate` shows them as they are (as Argoverse does, with 5 x 5), `blur` interpolates them smoothly. Information
beyond these few values is in neither image, so it cannot be recovered. The mean colours themselves still come from the face:
with a short list of candidate persons they can be compared. `fill`, a uniform grey that shows nothing but the position of the
box, does not keep even these.

The redacted box is larger than the detected one. A blurred box fades into the image in its outer part (FADE), so that its
border is not an object to annotators; the detected box lies completely inside the part that does not fade.
"""

from __future__ import annotations

import cv2
import numpy as np

REDACTION_METHODS = ("blur", "pixelate", "fill")

MIN_CELL_PX = 4
GREY = 128
FADE = 0.2
"""Outer part of a blurred box that fades into the image, as a fraction of the distance from its centre to its border."""
MIN_DILATE = 1 / (1 - FADE)
"""Smallest enlargement with which the detected box lies completely inside the part that does not fade."""


def redact_box(
    image: np.ndarray, found_xyxy: np.ndarray, *, method: str, dilate: float, cells: int
) -> tuple[int, int, int, int] | None:
    """Redact a box of an HWC uint8 RGB image in place, enlarged by the factor `dilate` around its centre.

    method: one of REDACTION_METHODS. cells: maximum number of mean colours per side that blur and pixelate keep.

    Returns the box of the pixels that may have changed, XYXY with right and bottom exclusive, clipped to the image; None if it
    lies outside the image.
    """
    height, width = image.shape[:2]
    centre = (found_xyxy[:2] + found_xyxy[2:]) / 2
    half = np.maximum((found_xyxy[2:] - found_xyxy[:2]) / 2 * dilate, 0.5)
    left, top = (max(0, int(side)) for side in np.floor(centre - half))
    right, bottom = (min(limit, int(side)) for side, limit in zip(np.ceil(centre + half), (width, height), strict=True))
    if left >= right or top >= bottom:
        return None
    inside = image[top:bottom, left:right]
    if method == "fill":
        inside[:] = GREY
    elif method == "pixelate":
        inside[:] = pixelate(inside, cells)
    else:
        inside[:] = blur(inside, cells, _fade_weight((left, top, right, bottom), centre, half))
    return left, top, right, bottom


def pixelate(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Return HWC uint8 pixels with every cell replaced by its mean colour."""
    return _resize(cell_means(pixels, cells), pixels.shape, cv2.INTER_NEAREST)


def blur(pixels: np.ndarray, cells: int, weight: np.ndarray) -> np.ndarray:
    """Return the mean colours of the cells, smoothly interpolated, blended with HWC uint8 `pixels`.

    weight: H x W x 1, 0..1; 1 shows the interpolated colours only, 0 the pixels only.
    """
    smooth = _resize(cell_means(pixels, cells), pixels.shape, cv2.INTER_CUBIC)
    return np.rint(weight * smooth + (1 - weight) * pixels)


def _fade_weight(xyxy: tuple[int, int, int, int], centre_xy: np.ndarray, half_xy: np.ndarray) -> np.ndarray:
    """Return the blur weight of each pixel of the clipped box `xyxy`: 1 inside, falling to 0 at the border of the whole box.

    centre_xy, half_xy: centre and half size of the whole box; a face that the image border clips does not fade there.
    """
    left, top, right, bottom = xyxy
    distance_x = np.abs(np.arange(left, right) + 0.5 - centre_xy[0]) / half_xy[0]
    distance_y = np.abs(np.arange(top, bottom) + 0.5 - centre_xy[1]) / half_xy[1]
    return np.clip((1 - np.maximum(distance_x[None], distance_y[:, None])) / FADE, 0, 1)[..., None]


def cell_means(pixels: np.ndarray, cells: int) -> np.ndarray:
    """Return the mean colours of the cells of HWC uint8 pixels, rows x columns x C uint8.

    There are `cells` cells per side, or fewer if they would be smaller than MIN_CELL_PX.
    """
    rows, columns = (max(1, min(cells, side // MIN_CELL_PX)) for side in pixels.shape[:2])
    return _resize(pixels, (rows, columns), cv2.INTER_AREA)


def _resize(pixels: np.ndarray, shape: tuple[int, ...], interpolation: int) -> np.ndarray:
    return cv2.resize(pixels, (shape[1], shape[0]), interpolation=interpolation).reshape(*shape[:2], -1)
