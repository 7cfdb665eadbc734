"""Making what was found unrecognisable for good.

A Gaussian blur is a convolution: with its kernel known, or learnt from pairs of faces, much of what it hid comes back. So the
strength here is not a kernel but a count. `pixelate` and `blur` both show at most `cells` x `cells` mean colours of the box, in
8 bits, each over MIN_CELL_PX pixels a side at least, whatever the size of the box: `pixelate` as they are (Argoverse's way, 5 x 5
of them), `blur` interpolated smoothly. What is not in these few numbers is in neither picture, so nobody can put it back. The
means themselves are still of that face: who has a short list of people can compare them. `fill`, a grey that says nothing but
where the box was, leaves not even these.

The box is taken larger than it was found. A blurred one fades into the picture in its outer FADE, so that its edge is no object
for the annotators; what was found lies further in.
"""

from __future__ import annotations

import cv2
import numpy as np

REDACTION_METHODS = ("blur", "pixelate", "fill")

MIN_CELL_PX = 4
GREY = 128
FADE = 0.2
"""Of the way from the middle of the enlarged box to its edge."""
MIN_DILATE = 1 / (1 - FADE)
"""From here on what was found is covered whole."""


def redact_box(
    image: np.ndarray, found_xyxy: np.ndarray, *, method: str, dilate: float, cells: int
) -> tuple[int, int, int, int] | None:
    """Cover a box, `dilate` times as large around its middle, of an HWC uint8 RGB picture in place.

    The pixels that may have changed, XYXY with right and bottom exclusive, cut to the picture; None where nothing is left.
    """
    height, width = image.shape[:2]
    middle = (found_xyxy[:2] + found_xyxy[2:]) / 2
    half = np.maximum((found_xyxy[2:] - found_xyxy[:2]) / 2 * dilate, 0.5)
    left, top = (max(0, int(side)) for side in np.floor(middle - half))
    right, bottom = (min(most, int(side)) for side, most in zip(np.ceil(middle + half), (width, height), strict=True))
    if left >= right or top >= bottom:
        return None
    inside = image[top:bottom, left:right]
    if method == "fill":
        inside[:] = GREY
        return left, top, right, bottom
    means = cell_means(inside, cells)
    if method == "pixelate":
        inside[:] = _resized(means, inside.shape, cv2.INTER_NEAREST)
        return left, top, right, bottom
    # By the box's own middle and half, also where the picture cuts it: a face at the border does not fade there.
    across = np.abs(np.arange(left, right) + 0.5 - middle[0]) / half[0]
    down = np.abs(np.arange(top, bottom) + 0.5 - middle[1]) / half[1]
    share = np.clip((1 - np.maximum(across[None], down[:, None])) / FADE, 0, 1)[..., None]
    smooth = _resized(means, inside.shape, cv2.INTER_CUBIC)
    inside[:] = np.rint(share * smooth + (1 - share) * inside)
    return left, top, right, bottom


def cell_means(pixels: np.ndarray, cells: int) -> np.ndarray:
    """HWC uint8 to rows x columns x C uint8 means: `cells` a side, or fewer where they would be less than MIN_CELL_PX."""
    rows, columns = (max(1, min(cells, side // MIN_CELL_PX)) for side in pixels.shape[:2])
    return _resized(pixels, (rows, columns), cv2.INTER_AREA)


def _resized(pixels: np.ndarray, shape: tuple[int, ...], interpolation: int) -> np.ndarray:
    return cv2.resize(pixels, (shape[1], shape[0]), interpolation=interpolation).reshape(*shape[:2], -1)
