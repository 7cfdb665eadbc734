"""Images as users have them (paths, Pillow images, arrays, tensors) to H x W x 3 uint8 RGB."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from sam_train.errors import SkipSampleError
from sam_train.inference.argument_checks import check_choice, invalid
from sam_train.shards.image_io import decode_pixels, pillow_to_rgb

ImageInput = str | os.PathLike[str] | Image | np.ndarray | Tensor

IMAGE_FORMATS = ("RGB", "BGR")
_EXPECTED = "H x W x 3 uint8 RGB with values 0 to 255 (or a path, a Pillow image, a 3 x H x W uint8 tensor)"


def to_rgb(image: ImageInput, image_format: str = "RGB", *, name: str = "image") -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image as H x W x 3 uint8 RGB.

    image: a path (the file's EXIF orientation is applied); a Pillow image (its pixels as they are); an H x W x 3 uint8 array;
        or a uint8 tensor, H x W x 3 or 3 x H x W.
    image_format: order of the channels of an array or tensor, "RGB" or "BGR" (OpenCV's).
    name: name of the argument, for messages.

    Raises ValueError for anything else, FileNotFoundError if there is no such file.
    """
    check_choice("image_format", image_format, IMAGE_FORMATS)
    if isinstance(image, str | os.PathLike):
        pixels = _read_file(Path(image), name)
    elif isinstance(image, np.ndarray | Tensor):
        pixels = _check_array(image, name)
        return np.ascontiguousarray(pixels[..., ::-1]) if image_format == "BGR" else pixels
    else:
        pixels = _convert_pillow(image, name)
    if image_format == "BGR":
        raise invalid("image_format", "'RGB' for a path or a Pillow image, whose colours are known", image_format)
    return pixels


def _read_file(path: Path, name: str) -> np.ndarray:
    try:
        return decode_pixels(path.read_bytes(), name=path.name)
    except SkipSampleError as error:
        raise ValueError(f"{name}: {error}") from error


def _convert_pillow(image: object, name: str) -> np.ndarray:
    if not isinstance(image, Image):
        raise invalid(name, _EXPECTED, got=f"a {type(image).__name__}")
    try:
        return pillow_to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _check_array(image: np.ndarray | Tensor, name: str) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if isinstance(image, Tensor) and array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"{name} must be {_EXPECTED}, got shape {array.shape} of {array.dtype}")
    if min(array.shape) < 1:
        raise ValueError(f"{name} must have at least one pixel, got shape {array.shape}")
    return np.ascontiguousarray(array)
