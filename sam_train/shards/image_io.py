"""Conversion of image files to the pixels and the JPEG that a shard stores.

Shards store JPEGs, so the returned pixels are always those that `decode_jpeg` reads from the returned JPEG: a mask drawn on them
fits the training image to the pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sam_train.errors import SkipSampleError
from sam_train.records import MAX_PIXELS
from sam_train.shards.jpeg import decode_jpeg, encode_jpeg, strip_metadata

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Extensions, in lower case, by which folders are searched for images. The first bytes of a file decide its format."""

IMAGE_SKIP_REASONS = ("empty_file", "unreadable", "unsupported_format", "too_large", "too_small")
"""Every `reason` of the SkipSampleError errors raised here."""

MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # limit of libjpeg

_TIFF_EXTRA_SAMPLES, _TIFF_ALPHA = 338, (1, 2)  # associated and unassociated alpha

_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """Pixels of an image and the JPEG that stores exactly these pixels."""

    image: np.ndarray
    """HWC uint8 RGB, upright, read-only by convention."""
    jpeg: bytes
    """JPEG that decodes to exactly `image`."""


class _UnsupportedPixelsError(ValueError):
    """The file is intact, but its kind of pixels cannot be converted to RGB."""


def load_image(path: Path, *, key: str = "", max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file as `decode_image` does, after a check of its size in bytes.

    Raises SkipSampleError as `decode_image` does. An OSError (no permission, disk failure) is not caught: it concerns the whole
    run.
    """
    num_bytes = path.stat().st_size
    if num_bytes > 16 * max_pixels + (1 << 20):  # the most that uncompressed pixels take: 4 channels of 32 bits
        raise SkipSampleError("too_large", f"{path.name}: {num_bytes} bytes are more than {max_pixels} pixels can take", key=key)
    return decode_image(path.read_bytes(), key=key, name=path.name, max_pixels=max_pixels)


def decode_image(
    data: bytes, *, key: str = "", name: str = "", max_pixels: int = MAX_PIXELS, apply_orientation: bool = True
) -> DecodedImage:
    """Decode a JPEG, PNG, WebP, BMP or TIFF to upright 8-bit RGB and the JPEG to store.

    - An 8-bit RGB or grayscale JPEG without an orientation to apply is stored unchanged but for its metadata (see
      `strip_metadata`). Everything else is re-encoded (quality 95, no chroma subsampling), which removes the metadata as well.
    - The EXIF orientation is applied, or removed if not `apply_orientation`; EXIF that cannot be parsed has none.
    - Images with 16 or 32 bits per channel (integer or float, gray or colour) are scaled linearly to 8 bits by the minimum and
      maximum over all channels of the image, so the brightness of two of them is not comparable; a constant one becomes black.
    - Alpha is composited over white; a fourth channel of a TIFF is alpha only if the file declares it so, else it is dropped.
      CMYK is converted without its colour profile; no profile is applied to other images.
    - Of an animation or a multi-page file the first frame is used.

    `name` is used in messages. Raises SkipSampleError with a `reason` of IMAGE_SKIP_REASONS. A JPEG for which the decoder only
    warns (trailing bytes, a premature end) is "unreadable", because no decoder can tell how many of its pixels are garbage.
    """
    header = open_image_header(data, key=key, name=name, max_pixels=max_pixels)
    with _decoding_errors(name=name, key=key):
        stored = _pixels_of_storable_jpeg(header, data)
        if stored is not None and not (apply_orientation and exif_orientation(header) != 1):
            return DecodedImage(image=stored, jpeg=strip_metadata(data))
        jpeg = encode_jpeg(_rgb_pixels(header, data, stored, apply_orientation=apply_orientation))
        return DecodedImage(image=decode_jpeg(jpeg, max_pixels=max_pixels), jpeg=jpeg)


def decode_pixels(data: bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a file to upright HWC uint8 RGB as `decode_image` does, but without re-encoding: the pixels are the file's own.

    Raises SkipSampleError with a `reason` of IMAGE_SKIP_REASONS.
    """
    header = open_image_header(data, name=name, max_pixels=max_pixels)
    with _decoding_errors(name=name, key=""):
        return _rgb_pixels(header, data, _pixels_of_storable_jpeg(header, data), apply_orientation=True)


@contextmanager
def _decoding_errors(*, name: str, key: str) -> Iterator[None]:
    """Raise SkipSampleError for an exception of a decoder."""
    try:
        yield
    except _UnsupportedPixelsError as error:
        raise SkipSampleError("unsupported_format", f"{name or 'the image'} {error}", key=key) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly any exception for corrupt bytes
        raise SkipSampleError("unreadable", f"{name or 'the image'} does not decode: {error}", key=key) from error


def open_image_header(
    data: bytes, *, key: str = "", name: str = "", max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE_PX
) -> ImageFile.ImageFile:
    """Open an image as a Pillow image of which only the header has been read and checked; `load` decodes the pixels.

    Raises SkipSampleError with a `reason` of IMAGE_SKIP_REASONS.
    """
    name = name or "the image"
    if not data:
        raise SkipSampleError("empty_file", f"{name} is empty", key=key)
    plugin = next((plugin for magic, plugin in _FORMATS if data.startswith(magic)), None)
    if plugin is None or (plugin is WebPImageFile and data[8:12] != b"WEBP"):
        raise SkipSampleError("unsupported_format", f"{name} is not a JPEG, PNG, WebP, BMP or TIFF: convert it", key=key)
    try:
        # Not Image.open, whose pixel limit is a process-wide global below ours.
        header = plugin(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise SkipSampleError("too_large", f"{name}: {error}", key=key) from error
    except MemoryError:
        raise
    except Exception as error:
        if plugin is TiffImageFile and "unknown pixel mode" in str(error):
            message = f"{name} is a TIFF whose bands are neither gray, RGB nor RGBA: write three of them as RGB"
            raise SkipSampleError("unsupported_format", message, key=key) from error
        raise SkipSampleError("unreadable", f"{name} has no readable header: {error}", key=key) from error
    _check_size(*header.size, name=name, key=key, max_pixels=max_pixels, min_side=min_side)
    return header


def _check_size(width: int, height: int, *, name: str, key: str, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
        limits = f"{max_pixels} pixels and sides of {MAX_SIDE_PX}"
        raise SkipSampleError(
            "too_large", f"{name} is {width} x {height}, at most {limits} are accepted: scale or crop it", key=key
        )
    if min(width, height) < min_side:
        raise SkipSampleError("too_small", f"{name} is {width} x {height}: no side may be below {min_side} pixels", key=key)


def _pixels_of_storable_jpeg(header: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
    """Return HWC uint8 pixels as the reader of a shard decodes them, None if the reader cannot decode this file."""
    if not isinstance(header, JpegImageFile) or header.mode not in ("RGB", "L"):
        return None
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:  # a rare chroma subsampling, or a corrupt file: Pillow's decoder distinguishes them
        return None
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def has_exif(data: bytes) -> bool:
    """Return whether an image file may have EXIF. It saves decoding a PNG, which Pillow loads to read its EXIF."""
    return not data.startswith(b"\x89PNG") or b"eXIf" in data or b"Raw profile type" in data


def exif_orientation(header: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 (stored upright) to 8; 1 if there is none or it cannot be read."""
    try:
        value = header.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, EOFError, struct.error):
        return 1
    return value if value in range(2, 9) else 1


def _decode(header: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Decode to any Pillow mode; colours to 8 bits per channel."""
    deep_colour = header.mode in ("RGB", "RGBA", "LA") and _is_deep(header)  # before loading, which clears the tiles
    has_alpha = _declares_alpha(header)
    header.load()  # also if cv2 decodes below: cv2 silently fills the missing part of a truncated file with black
    if deep_colour:
        return _decode_deep_colour(data, has_alpha=has_alpha)
    return header if has_alpha or header.mode != "RGBA" else header.convert("RGB")


def _declares_alpha(header: ImageFile.ImageFile) -> bool:
    """Return whether a fourth channel is alpha. A TIFF must say so; its extra channel may be near infrared or anything else."""
    if not isinstance(header, TiffImageFile):
        return True
    extra = header.tag_v2.get(_TIFF_EXTRA_SAMPLES, ())
    return any(kind in _TIFF_ALPHA for kind in (extra if isinstance(extra, tuple) else (extra,)))


def _is_deep(header: ImageFile.ImageFile) -> bool:
    """Return whether a file has 16 bits per channel. Pillow keeps the high byte only, so that dim images would become black."""
    raw_modes = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in header.tile]
    return any(isinstance(raw_mode, str) and ";16" in raw_mode for raw_mode in raw_modes)


def _decode_deep_colour(data: bytes, *, has_alpha: bool) -> Image.Image:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise _UnsupportedPixelsError("has 16-bit colours stored in a way that OpenCV does not read: save it with 8 bits")
    colours = _scale_to_8_bits(pixels[..., 2::-1])
    if pixels.shape[2] == 3 or not has_alpha:
        return Image.fromarray(colours)
    return Image.fromarray(np.dstack([colours, (pixels[..., 3] // 257).astype(np.uint8)]))


def _scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _UnsupportedPixelsError("holds NaN or infinite values: save it as integers")
    dtype = np.float32 if values.dtype.itemsize == 2 else np.float64
    scale = 255.0 / (high - low) if high > low else 0.0
    offset, factor = np.asarray(low, dtype), np.asarray(scale, dtype)  # keep the precision
    return np.rint(np.multiply(np.subtract(values.astype(dtype), offset), factor)).astype(np.uint8)


def _rgb_pixels(header: ImageFile.ImageFile, data: bytes, stored: np.ndarray | None, *, apply_orientation: bool) -> np.ndarray:
    """Return the pixels of a file, which `stored` already holds if it is a common JPEG."""
    pixels = pillow_to_rgb(_decode(header, data)) if stored is None else stored
    # Only here: Pillow loads a PNG to read its EXIF, after which its bit depth is unknown.
    orientation = exif_orientation(header) if apply_orientation else 1
    return pixels if orientation == 1 else _apply_orientation(pixels, orientation)


def pillow_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image of any mode to HWC uint8 RGB: alpha over white, deep gray scaled as in `decode_image`.

    Raises ValueError for a mode that Pillow does not convert.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_scale_to_8_bits(np.asarray(image)))
    try:
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        foreground = image.convert("RGBA")
    except ValueError as error:  # LAB and other modes that Pillow decodes but does not convert
        raise _UnsupportedPixelsError(f"has mode {image.mode}: save it as RGB ({error})") from error
    return np.asarray(Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground).convert("RGB"))


def _apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))
