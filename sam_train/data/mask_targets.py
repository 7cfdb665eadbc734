"""Target masks in the model frame, resized directly from RLE: only the pixels of a mask's bounding box are written.

`geometry.resize_masks` defines the result: a pixel is set if more than half of its area was. The result is exact if the image
grows, and for masks with a small box, where a single pixel matters. A larger mask that shrinks is sampled in its runs: a pixel
is set if its centre was (for shrinking by up to 2.5), or else if five of nine points in it were. Along straight edges that is
the same. The tests require an IoU of at least 0.96 with the exact result at the sizes of SA-1B, and a mean of 0.985.

Without rlemasklib, for which some platforms have no wheel, pycocotools and `resize_masks` compute the exact result, several
times as slowly; the first use logs a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam_train.data.mask_crops import MaskCrop, MaskCrops
from sam_train.data.rle_resize import downsample_rles
from sam_train.errors import ShardError
from sam_train.geometry import resize_masks
from sam_train.records import MAX_PIXELS, Rle
from sam_train.rle import decode_rle, rlemasklib_or_none


def resize_rles(rles: Sequence[Rle], size_hw: tuple[int, int], to_hw: tuple[int, int], *, key: str = "") -> MaskCrops:
    """Resize the masks of an image of `size_hw` pixels to `to_hw`, as crops in the resized frame.

    key: key of the sample, for error messages.

    Raises ShardError (field) for an RLE that is invalid or has another size.
    """
    rle_mask_class, num_pixels = _rle_mask_class(), size_hw[0] * size_hw[1]
    if rle_mask_class is None or num_pixels > MAX_PIXELS:  # `decode_rle` rejects more than MAX_PIXELS
        masks = (decode_rle(rle, height=size_hw[0], width=size_hw[1], key=key) for rle in rles)
    elif to_hw[0] * to_hw[1] < num_pixels:
        return downsample_rles([_parse_rle(rle_mask_class, rle, size_hw, key) for rle in rles], size_hw, to_hw)
    else:
        masks = (_parse_rle(rle_mask_class, rle, size_hw, key).to_array().view(bool) for rle in rles)
    return MaskCrops.from_crops(MaskCrop.from_mask(resize_masks(mask[None], *to_hw)[0]) for mask in masks)


def _rle_mask_class() -> Any:
    """Return the class RLEMask of rlemasklib, or None if it is not installed."""
    library = rlemasklib_or_none()
    return None if library is None else library.RLEMask


def _parse_rle(rle_mask_class: Any, rle: Rle, size_hw: tuple[int, int], key: str) -> Any:
    if rle.get("size") != [*size_hw]:
        message = f"RLE size {rle.get('size')} is not the image's {[*size_hw]}"
        raise ShardError(message, key=key, field="segmentation.size")
    try:  # rlemasklib rejects runs that do not add up to the size, but accepts characters outside the encoding's alphabet
        if rle["counts"].isascii():
            return rle_mask_class.from_dict(rle)
        problem = "the counts contain non-ASCII characters"
    except (ValueError, OverflowError) as error:
        problem = str(error)
    raise ShardError(f"RLE runs do not add up to the image's pixels: {problem}", key=key, field="segmentation.counts")
