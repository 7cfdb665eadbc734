"""Matching of the image and label files of a data set by name, and decoding of its images.

Folders are searched recursively; names that begin with a dot are ignored. Names from a data set's own files are checked before
use (`checked_relative_path`).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards.image_io import (
    IMAGE_EXTENSIONS,
    DecodedImage,
    decode_image,
    exif_orientation,
    load_image,
    open_image_header,
)
from sam_train.shards.jpeg import strip_metadata


def files_by_stem(folder: Path, extensions: tuple[str, ...], *, suffix: str = "") -> dict[str, Path]:
    """Return the files `folder/SUB/STEM{suffix}.ext` by "SUB/STEM", in the order of names.

    Raises ShardError if the folder does not exist, or if two files differ in extension only.
    """
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix.lower() not in extensions or any(part.startswith(".") for part in name.parts):
            continue
        if not path.stem.endswith(suffix) or not path.is_file():
            continue
        stem = name.with_suffix("").as_posix().removesuffix(suffix)
        if stem in files:
            raise ShardError(f"{files[stem]} and {path.name} differ in extension only: remove one")
        files[stem] = path
    return files


def images_by_stem(folder: Path, *, suffix: str = "") -> dict[str, Path]:
    """Return the images of a folder as `files_by_stem` does. Raises ShardError also if there is none."""
    images = files_by_stem(folder, IMAGE_EXTENSIONS, suffix=suffix)
    if not images:
        raise ShardError(f"no images in {folder}: expected files ending in {' '.join(suffix + e for e in IMAGE_EXTENSIONS)}")
    return images


def pairs_by_stem(
    images: Path, labels: Path, extension: str, *, what: str, image_suffix: str = "", label_suffix: str = ""
) -> list[tuple[str, Path, Path]]:
    """Return (name of the image relative to `images`, its path, path of its label), in the order of stems.

    Raises ShardError for an image without a label and a label without an image; `what` names the label in the message.
    """
    image_paths = images_by_stem(images, suffix=image_suffix)
    label_paths = files_by_stem(labels, (extension,), suffix=label_suffix)
    for stem in sorted(image_paths.keys() ^ label_paths.keys()):
        if stem in image_paths:
            raise ShardError(f"{image_paths[stem]} has no {what}: expected {labels / stem}{label_suffix}{extension}")
        endings = " ".join(image_suffix + e for e in IMAGE_EXTENSIONS)
        raise ShardError(f"{label_paths[stem]} has no image: expected {images / stem} with one of {endings}")
    return [(path.relative_to(images).as_posix(), path, label_paths[stem]) for stem, path in sorted(image_paths.items())]


def checked_relative_path(name: object, *, place: str) -> str:
    """Return a file name from a data set as a POSIX path. Raises ShardError, naming `place`, if it leads out of its folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise ShardError(f"{place}: expected a file name with '/' between folders, got {str(name)[:200]!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ShardError(f"{place}: {name[:200]!r} leads out of the folder: names must be relative, without '..'")
    return path.as_posix()


def load_image_or_raise(path: Path, *, key: str) -> DecodedImage:
    """Decode an image file to upright pixels.

    Raises ShardError, naming the file, if it cannot be used: an import includes every image or stops.
    """
    try:
        return load_image(path, key=key)
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}; repair the file, or remove it and its masks") from error


def decode_annotated_image(data: bytes, *, width: int, height: int, name: str, key: str) -> DecodedImage:
    """Decode an image file to the frame of its annotations, whose size they declare as width x height.

    Annotations in JSON refer to the pixels as stored (COCO's tools ignore EXIF), so an EXIF orientation is removed and not
    applied, unless only the upright image has the declared size. Masks then fit without a change.
    Raises ShardError, naming the file, if it cannot be used or has another size in either orientation.
    """
    try:
        header = open_image_header(data, key=key, name=name)
        is_rotated = exif_orientation(header) != 1
        if is_rotated and header.size == (width, height):
            if header.format != "JPEG":
                raise ShardError(f"{name} is {header.format} with an EXIF orientation: save it without, with pixels as stored")
            data = strip_metadata(data)
        decoded = decode_image(data, key=key, name=name)
    except (SkipSampleError, ValueError) as error:
        raise ShardError(f"{name}: {error}; repair the file, or remove it and its masks") from error
    size = (decoded.image.shape[1], decoded.image.shape[0])
    if size != (width, height):
        raise ShardError(f"{name} is {size[0]} x {size[1]}, its annotations declare {width} x {height}: they must agree", key=key)
    return decoded
