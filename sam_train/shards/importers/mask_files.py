"""Reading of masks and label maps from image files and arrays, as far as nothing is lost."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import MAX_PIXELS
from sam_train.shards.image_io import open_image_header

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".npy", ".jpg", ".jpeg", ".webp")
"""Extensions of files that can hold a mask or a label map."""

_LOSSY = ("JPEG", "WEBP")
_GRAY_MODES = ("1", "L", "P", "I")
_PALETTE_VOID = 255
"""Value of the void border in 8-bit label maps with a palette (Pascal VOC and its successors)."""


def read_label_map(path: Path, *, threshold: int | None = None) -> np.ndarray:
    """Read a map of non-negative integers, H x W uint8, uint16, uint32 or uint64.

    A PNG, TIFF or BMP has one channel, or several that are equal (gray stored as RGB, LA or RGBA); the values of a palette are
    its indices. An .npy file holds integers or booleans, H x W. With a `threshold`, the map is 1 where the gray value is above
    it and 0 elsewhere; formats that lose values (JPEG, WebP) are read only so. Raises ShardError, naming the file, for any other
    file.
    """
    if path.suffix.lower() == ".npy":
        return _unsigned(_read_array(path), path) if threshold is None else (_read_array(path) > threshold).astype(np.uint8)
    image = _open(path)
    if threshold is not None:
        return (_gray(image, path) > threshold).astype(np.uint8)
    if image.format in _LOSSY:
        raise ShardError(f"{path} is {image.format}, which changes values: give --threshold, such as 127 for black and white")
    return _unsigned(_single_channel(image, path), path)


def read_colours(path: Path) -> np.ndarray:
    """Read an RGB label map, H x W x 3 uint8. Raises ShardError, naming the file, for any other file."""
    image = _open(path)
    if image.format in _LOSSY or image.mode not in ("RGB", "RGBA"):
        raise ShardError(f"{path} is {image.format} with mode {image.mode}: expected an RGB image without loss, such as PNG")
    return np.asarray(image)[..., :3]


def label_file_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of a mask file from its header, None if it cannot be read."""
    try:
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return (shape[1], shape[0]) if len(shape) == 2 else None
        width, height = open_image_header(path.read_bytes(), name=path.name).size
    except (OSError, ValueError, EOFError, SkipSampleError):
        return None
    return width, height


def is_palette(path: Path) -> bool:
    """Return whether a file is an image whose values are indices of a palette."""
    return path.suffix.lower() != ".npy" and _open(path, load=False).mode == "P"


def drop_ignored(values: np.ndarray, path: Path, ignore: tuple[int, ...] | None, counts: Counter[str]) -> np.ndarray:
    """Return the map with 0 instead of ignored values, each counted as "ignored_value" if it occurs.

    None means 255 for a map with a palette, nothing for others.
    """
    if ignore is None:
        ignore = (_PALETTE_VOID,) if is_palette(path) else ()
    present = [value for value in ignore if value and (values == value).any()]
    if not present:
        return values
    counts["ignored_value"] += len(present)
    return np.where(np.isin(values, present), 0, values).astype(values.dtype)


def _open(path: Path, *, load: bool = True) -> ImageFile.ImageFile:
    try:
        image = open_image_header(path.read_bytes(), name=path.name)
        if load:
            image.load()
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} does not decode: {error}") from error
    return image


def _single_channel(image: Image.Image, path: Path) -> np.ndarray:
    values = np.asarray(image)
    if image.mode in _GRAY_MODES or image.mode.startswith("I;16") or (image.mode == "F" and (values == np.rint(values)).all()):
        return values
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise ShardError(f"{path} has mode {image.mode}: a label map has one channel of integers")
    colours = values[..., :1] if image.mode == "LA" else values[..., :3]
    if (colours != colours[..., :1]).any():
        message = f"{path} has colours (mode {image.mode}): a label map has one channel, or equal ones"
        raise ShardError(f"{message}; kind panoptic reads ids in RGB, kind colour_masks a colour per class")
    gray = colours[..., 0]
    is_in_alpha = image.mode in ("LA", "RGBA") and (gray == gray.flat[0]).all()
    return values[..., -1] if is_in_alpha and len(np.unique(values[..., -1])) > 1 else gray


def _gray(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    try:
        return np.asarray(image if image.mode == "P" else image.convert("L"))
    except ValueError as error:
        raise ShardError(f"{path} has mode {image.mode}: {error}") from error


def _read_array(path: Path) -> np.ndarray:
    try:
        values = np.load(BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ShardError(f"{path} is not a NumPy array without objects: {error}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size > MAX_PIXELS:
        shape = getattr(values, "shape", None)
        raise ShardError(f"{path} has the shape {shape}: expected H x W, at most {MAX_PIXELS} pixels")
    return values


def _unsigned(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind in "bu":
        return values.astype(np.uint8) if values.dtype.kind == "b" else values
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise ShardError(f"{path} has fractions or NaN: a label map has integers")
    if values.dtype.kind not in "if" or (values.size and values.min() < 0):
        raise ShardError(f"{path} has values of type {values.dtype} below 0: a label map has integers from 0")
    return values.astype(np.uint16 if values.size == 0 or values.max() < 1 << 16 else np.uint64)
