"""Which files of a data set belong together, and how a picture of one is read.

Folders are searched to the bottom; names that begin with a dot are not looked at. Names that stand in a data set's own files
are never trusted: `checked_relative_path`.
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
    """`folder/SUB/STEM{suffix}.ext` by "SUB/STEM", in name order.

    Raises ShardError when there is no such folder, and for two files that differ in extension only.
    """
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix.lower() not in extensions or any(part.startswith(".") for part in name.parts):
            continue
        if not path.stem.endswith(suffix) or not path.is_file():
            continue
        stem = name.with_suffix("").as_posix().removesuffix(suffix)
        if stem in found:
            raise ShardError(f"{found[stem]} and {path.name} differ in extension only: leave one out")
        found[stem] = path
    return found


def images_by_stem(folder: Path, *, suffix: str = "") -> dict[str, Path]:
    """`files_by_stem` of pictures. Raises ShardError also when there is none."""
    found = files_by_stem(folder, IMAGE_EXTENSIONS, suffix=suffix)
    if not found:
        raise ShardError(f"no pictures in {folder}: expected files ending in {' '.join(suffix + e for e in IMAGE_EXTENSIONS)}")
    return found


def pairs_by_stem(
    images: Path, labels: Path, extension: str, *, what: str, image_suffix: str = "", label_suffix: str = ""
) -> list[tuple[str, Path, Path]]:
    """(name of the picture below `images`, its path, its label's path), in the order of stems.

    Raises ShardError for a picture without label or the reverse; `what` is what the message calls a label.
    """
    pictures = images_by_stem(images, suffix=image_suffix)
    found = files_by_stem(labels, (extension,), suffix=label_suffix)
    for stem in sorted(pictures.keys() ^ found.keys()):
        if stem in pictures:
            raise ShardError(f"{pictures[stem]} has no {what}: expected {labels / stem}{label_suffix}{extension}")
        one_of = " ".join(image_suffix + e for e in IMAGE_EXTENSIONS)
        raise ShardError(f"{found[stem]} has no picture: expected {images / stem} with one of {one_of}")
    return [(pictures[stem].relative_to(images).as_posix(), pictures[stem], found[stem]) for stem in sorted(pictures)]


def checked_relative_path(name: object, *, place: str) -> str:
    """A file name that a data set gives, POSIX slashes. Raises ShardError, naming `place`, unless it stays below its folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise ShardError(f"{place}: expected a file name with '/' between folders, got {str(name)[:200]!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ShardError(f"{place}: {name[:200]!r} leads out of the folder: names must be relative, without '..'")
    return path.as_posix()


def load_image_or_raise(path: Path, *, key: str) -> DecodedImage:
    """`load_image`: upright. Raises ShardError, naming the file, for one that cannot be used: an import is whole or stops."""
    try:
        return load_image(path, key=key)
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}; mend it, or take it and its masks away") from error


def decode_annotated_image(data: bytes, *, width: int, height: int, name: str, key: str) -> DecodedImage:
    """A picture file's pixels in the frame that its annotations count in, width x height as they say.

    Data sets in JSON mean the pixels as they are stored (COCO's tools do not look at EXIF), so an EXIF orientation is dropped
    and not followed, unless only the upright picture has the size that the annotations name. So masks fit as they are.
    Raises ShardError, naming the file, for one that cannot be used or is of another size, either way.
    """
    try:
        header = open_image_header(data, key=key, name=name)
        turned = exif_orientation(header) != 1
        if turned and header.size == (width, height):
            if header.format != "JPEG":
                raise ShardError(f"{name} has an EXIF orientation and is {header.format}: save it without, as it is stored")
            data = strip_metadata(data)
        picture = decode_image(data, key=key, name=name)
    except (SkipSampleError, ValueError) as error:
        raise ShardError(f"{name}: {error}; mend it, or take it and its masks away") from error
    found = (picture.image.shape[1], picture.image.shape[0])
    if found != (width, height):
        raise ShardError(f"{name} is {found[0]} x {found[1]}, its annotations say {width} x {height}: they must agree", key=key)
    return picture
