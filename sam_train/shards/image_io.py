"""Any picture file to the pixels and the JPEG that a shard holds.

What a shard stores is a JPEG, so the pixels given back are always those that `decode_jpeg` reads from that JPEG: a mask
drawn on them fits what a trainer will see, to the pixel.
"""

from __future__ import annotations

import struct
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
"""What a folder is searched for, in lower case. What a file *is* is decided by its first bytes."""

IMAGE_SKIP_REASONS = ("empty_file", "unreadable", "unsupported_format", "too_large", "too_small")
"""Every `reason` of a SkipSampleError raised here."""

MIN_SIDE_PX = 8
MAX_SIDE_PX = 65_500  # libjpeg's limit

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
    """`image`: HWC uint8 RGB, upright, read-only by convention. `jpeg`: bytes that decode to exactly these pixels."""

    image: np.ndarray
    jpeg: bytes


class _UnknownKindError(Exception):
    """The file is whole, but of a kind that cannot be turned into RGB."""


def load_image(path: Path, *, key: str = "", max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """`decode_image` of a file, whose size is looked at before its bytes are.

    Raises SkipSampleError as `decode_image` does. An OSError (no permission, a failing disk) passes: it concerns the run.
    """
    num_bytes = path.stat().st_size
    if num_bytes > 16 * max_pixels + (1 << 20):  # no picture of so few pixels needs more: 4 channels of 32 bits
        raise SkipSampleError("too_large", f"{path.name}: {num_bytes} bytes are more than {max_pixels} pixels can need", key=key)
    return decode_image(path.read_bytes(), key=key, name=path.name, max_pixels=max_pixels)


def decode_image(data: bytes, *, key: str = "", name: str = "", max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Bytes of a JPEG, PNG, WebP, BMP or TIFF to upright 8-bit RGB and the JPEG to store.

    - An 8-bit RGB or grayscale JPEG with no orientation to apply is stored as it came but for its metadata (see
      `strip_metadata`); anything else is encoded anew (quality 95, no chroma subsampling), which leaves them behind too.
    - EXIF orientation is applied; EXIF that cannot be parsed carries none.
    - Deep pictures (16 or 32 bits, integer or float, gray or colour) are scaled linearly to 8 bits by the picture's own
      min..max over all colours, so two of them are not comparable in brightness; a flat one becomes black.
    - Alpha is composited over white. CMYK is converted without its colour profile; no profile is applied to others.
    - Of an animation or a multi-page file the first frame is taken.

    `name` is for messages. Raises SkipSampleError, `reason` one of IMAGE_SKIP_REASONS. A JPEG whose data the decoder only warns
    about (bytes left over, a premature end) counts as unreadable: no decoder can say how much of it is garbage.
    """
    header = open_image_header(data, key=key, name=name, max_pixels=max_pixels)
    try:
        stored = _pixels_of_storable_jpeg(header, data)
        if stored is not None and exif_orientation(header) == 1:
            return DecodedImage(image=stored, jpeg=strip_metadata(data))
        pixels = _over_white(_decode(header, data)) if stored is None else stored
        jpeg = encode_jpeg(_upright(pixels, exif_orientation(header)))
        return DecodedImage(image=decode_jpeg(jpeg, max_pixels=max_pixels), jpeg=jpeg)
    except _UnknownKindError as error:
        raise SkipSampleError("unsupported_format", f"{name or 'the picture'} {error}", key=key) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything for bytes they do not understand
        raise SkipSampleError("unreadable", f"{name or 'the picture'} does not decode: {error}", key=key) from error


def open_image_header(data: bytes, *, key: str = "", name: str = "", max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """A Pillow image of which only the header has been read and found acceptable; `load` decodes it.

    Raises SkipSampleError, `reason` one of IMAGE_SKIP_REASONS.
    """
    name = name or "the picture"
    if not data:
        raise SkipSampleError("empty_file", f"{name} is empty", key=key)
    plugin = next((plugin for magic, plugin in _FORMATS if data.startswith(magic)), None)
    if plugin is None or (plugin is WebPImageFile and data[8:12] != b"WEBP"):
        raise SkipSampleError("unsupported_format", f"{name} is none of JPEG, PNG, WebP, BMP, TIFF: convert it", key=key)
    try:
        # Not Image.open: its own pixel limit is a process-wide global, lower than ours.
        header = plugin(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise SkipSampleError("too_large", f"{name}: {error}", key=key) from error
    except MemoryError:
        raise
    except Exception as error:
        raise SkipSampleError("unreadable", f"{name} has no readable header: {error}", key=key) from error
    _check_size(*header.size, name=name, key=key, max_pixels=max_pixels)
    return header


def _check_size(width: int, height: int, *, name: str, key: str, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
        limits = f"{max_pixels} pixels and sides of {MAX_SIDE_PX}"
        raise SkipSampleError("too_large", f"{name} is {width} x {height}, at most {limits} are taken: scale or cut it", key=key)
    if min(width, height) < MIN_SIDE_PX:
        raise SkipSampleError("too_small", f"{name} is {width} x {height}: no side may be below {MIN_SIDE_PX} pixels", key=key)


def _pixels_of_storable_jpeg(header: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
    """HWC uint8 as a shard's reader will see them, None when the reader could not read this file."""
    if not isinstance(header, JpegImageFile) or header.mode not in ("RGB", "L"):
        return None
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:  # a rare chroma subsampling, or torn: Pillow's decoder knows which
        return None
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def exif_orientation(header: ImageFile.ImageFile) -> int:
    """EXIF's number for how the stored pixels must be turned to be upright: 1 (as they are) to 8. What cannot be read is 1."""
    try:
        value = header.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, EOFError, struct.error):
        return 1
    return value if value in range(2, 9) else 1


def _decode(header: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Pixels with 8 bits a channel, any Pillow mode."""
    deep_colour = header.mode in ("RGB", "RGBA", "LA") and _is_deep(header)  # asked first: loading forgets the tiles
    header.load()  # also of what cv2 decodes below: cv2 fills what is missing of a torn file with black
    if header.mode in ("I", "F") or header.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(header)))
    return _decode_deep_colour(data) if deep_colour else header


def _is_deep(header: ImageFile.ImageFile) -> bool:
    """True when the file holds 16 bits a channel, of which Pillow keeps the high byte: dim pictures would come out black."""
    first = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in header.tile]
    return any(isinstance(raw_mode, str) and ";16" in raw_mode for raw_mode in first)


def _decode_deep_colour(data: bytes) -> Image.Image:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype != np.uint16:
        raise _UnknownKindError("has 16-bit colours stored in a way that OpenCV does not read: save it with 8 bits")
    colours = _to_8_bits(pixels[..., 2::-1])
    if pixels.shape[2] == 3:
        return Image.fromarray(colours)
    return Image.fromarray(np.dstack([colours, (pixels[..., 3] // 257).astype(np.uint8)]))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _UnknownKindError("holds NaN or infinite values: save it as integers")
    exact = np.float32 if values.dtype.itemsize == 2 else np.float64
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((values.astype(exact) - exact(low)) * exact(scale)).astype(np.uint8)


def _over_white(image: Image.Image) -> np.ndarray:
    """HWC uint8 RGB of any Pillow mode."""
    try:
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        foreground = image.convert("RGBA")
    except ValueError as error:  # LAB and other modes that Pillow decodes but does not convert
        raise _UnknownKindError(f"is of mode {image.mode}, which has no way to RGB ({error}): convert it") from error
    return np.asarray(Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground).convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))
