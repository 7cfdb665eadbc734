"""Where pictures come from: a folder, a glob, a list of paths, or SA-1B tars, in one fixed order.

`open_source` only lists: file names, or the headers of tars. Nothing is decoded, so the references can be cut into slices
at once and each slice loaded elsewhere; `Source.load` needs nothing but the reference.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.structures import SourceImage
from sam_train.errors import ConfigError, SkipSample
from sam_train.shards import decode_jpeg, expand_shards
from sam_train.shards.index import IndexedSample, index_shard, read_sample
from sam_train.shards.jpeg import without_metadata
from sam_train.shards.keys import check_unique, image_id_from_path, keys_from_paths
from sam_train.shards.pictures import MAX_PIXELS, PICTURE_EXTENSIONS, PICTURE_REASONS, load_picture, open_picture

LOAD_REASONS = (*PICTURE_REASONS, "wrong_size")
"""Every `reason` of a SkipSample that `Source.load` raises."""

LISTING_REASONS = ("outside_source", "linked_folder", "not_a_file")
"""Every reason in `Source.skipped`."""

_KINDS = (
    f"a folder of pictures ({' '.join(PICTURE_EXTENSIONS)}), a glob of such, a .txt list with one path a line,"
    " or SA-1B tars (a .tar, a glob or brace range of them, or a folder that holds them)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One picture of a source, not read yet."""

    key: str
    """Name in a shard; see `keys_from_paths`. A shard's sample keeps its own."""
    image_id: int
    """Of 48 bits, from the relative path. A shard's sample keeps its own."""
    path: Path
    """The picture, or the shard that holds it."""
    origin: str
    """For people: the path relative to the source, or `shard.tar/member`."""
    sample: IndexedSample | None = None
    """Where in the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All pictures of a source in a fixed order. Small enough to send to a worker, and picklable."""

    references: tuple[Reference, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    """What was found but not listed: relative path -> one of LISTING_REASONS."""
    max_pixels: int = MAX_PIXELS

    def load(self, reference: Reference) -> SourceImage:
        """Read and decode one picture: upright RGB, and the JPEG that decodes to exactly that.

        Raises SkipSample for a picture that cannot be used, `reason` one of LOAD_REASONS; ShardError for a record that
        the schema does not know or a tar that changed since it was listed; OSError where the disk or a permission fails.
        """
        if reference.sample is not None:
            return _load_sample(reference, reference.sample, self.max_pixels)
        picture = load_picture(reference.path, key=reference.key, max_pixels=self.max_pixels)
        return SourceImage(
            key=reference.key, image_id=reference.image_id, image=picture.image, jpeg=picture.jpeg, origin=reference.origin
        )


def open_source(source: str | Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """List the pictures that `source` names.

    - A folder is searched to the bottom, in the order of the relative paths. Hidden files and folders are not looked at.
      A folder that directly holds .tar files is a folder of shards.
    - A glob (`**` included) lists as the folder before its first wildcard would, so both give a picture the same key.
    - A `.txt` list keeps its order; its paths are relative to the list's folder. Their extensions do not matter.
    - A name that ends in .tar is a shard, or a glob or brace range of shards, in name order.

    In folders and globs a link is followed to a file inside, never to one outside; links to folders are not followed.
    What was left out so stands in `Source.skipped`. A list names its files one by one, so there any link is followed.

    Raises ConfigError when nothing is found, or two pictures have one key or image id; ShardError for a torn tar.
    """
    name = os.path.expanduser(source)
    skipped: dict[str, str] = {}
    if name.endswith(".tar") or _holds_shards(Path(name)):
        references = _shard_references(expand_shards(name))
    elif Path(name).is_dir():
        references, skipped = _found(Path(name), _walk(Path(name)), source=name)
    elif name.lower().endswith(".txt"):
        references = _list_references(Path(name))
    else:
        references, skipped = _glob_references(name)
    check_unique([(reference.image_id, reference.origin) for reference in references], "image id")
    return Source(references=tuple(references), skipped=skipped, max_pixels=max_pixels)


def _load_sample(reference: Reference, indexed: IndexedSample, max_pixels: int) -> SourceImage:
    sample = read_sample(indexed)
    open_picture(sample.jpeg, key=reference.key, name=reference.origin, max_pixels=max_pixels)
    try:
        # Not turned upright by its EXIF: no reader of shards does, and the record's masks lie on the pixels as stored.
        image = decode_jpeg(sample.jpeg, shard=str(indexed.shard), key=reference.key)
        jpeg = without_metadata(sample.jpeg)
    except (SkipSample, ValueError) as error:
        raise SkipSample("unreadable", f"{reference.origin} does not decode: {error}") from error
    record = sample.record
    if image.shape[:2] != (record.height, record.width):
        message = f"the JPEG is {image.shape[1]} x {image.shape[0]}, its record says {record.width} x {record.height}"
        raise SkipSample("wrong_size", message, shard=str(indexed.shard), key=reference.key)
    return SourceImage(
        key=reference.key, image_id=record.image_id, image=image, jpeg=jpeg, origin=reference.origin, record=record
    )


def _holds_shards(folder: Path) -> bool:
    if not folder.is_dir() or not any(folder.glob("*.tar")):
        return False
    pictures = [path for path in _walk(folder) if _is_picture(path)]
    if pictures:
        raise ConfigError(
            f"{folder} holds shards and pictures (such as {pictures[0]}): name '{folder}/*.tar', or put the pictures elsewhere"
        )
    return True


def _shard_references(shards: Sequence[Path]) -> list[Reference]:
    samples = [sample for shard in shards for sample in index_shard(shard)]
    if not samples:
        raise ConfigError(
            f"no samples in {', '.join(str(shard) for shard in shards[:3])}: expected pairs of KEY.jpg and KEY.json"
        )
    check_unique([(sample.key, f"{sample.shard.name}/{sample.key}.jpg") for sample in samples], "key")
    return [
        Reference(key=s.key, image_id=s.image_id, path=s.shard, origin=f"{s.shard.name}/{s.key}.jpg", sample=s) for s in samples
    ]


def _glob_references(pattern: str) -> tuple[list[Reference], dict[str, str]]:
    path = Path(pattern)
    if path.is_file():  # before it is looked at as a pattern: its name may hold a bracket
        return _found(path.parent, [path.name], source=pattern)
    literal = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)
    root = Path(*path.parts[:literal])
    matches = glob.glob(pattern, recursive=True)
    return _found(root, [os.path.relpath(match, root) for match in matches if not os.path.isdir(match)], source=pattern)


def _list_references(path: Path) -> list[Reference]:
    if not path.is_file():
        raise ConfigError(f"no such list: {path}. Expected a text file with the path of one picture a line")
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    named = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in named:
        if not (path.parent / line).is_file():
            raise ConfigError(f"{path}, line {number}: no such file {_printable(line)!r} (relative to {path.parent})")
    if not named:
        raise ConfigError(f"the list {path} is empty: expected the path of one picture a line")
    return _references(path.parent, [Path(os.path.normpath(line)).as_posix() for _, line in named])


def _walk(root: Path) -> list[str]:
    """Relative paths of all files and of linked folders, hidden ones left out."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, n), root) for n in (*files, *linked) if not n.startswith(".")]
    return found


def _found(root: Path, relative: Sequence[str], *, source: str) -> tuple[list[Reference], dict[str, str]]:
    """References and what is left out of the files that a search came upon."""
    kept: list[str] = []
    skipped: dict[str, str] = {}
    inside = root.resolve()
    for name in sorted(Path(path).as_posix() for path in relative):
        path = root / name
        if path.is_dir():
            skipped[_printable(name)] = "linked_folder"
        elif _is_picture(name):
            reason = "not_a_file" if not path.is_file() else "" if path.resolve().is_relative_to(inside) else "outside_source"
            if reason:
                skipped[_printable(name)] = reason
            else:
                kept.append(name)
    if not kept:
        raise ConfigError(_nothing_found(source, num_files=len(relative), skipped=skipped))
    return _references(root, kept), skipped


def _nothing_found(source: str, *, num_files: int, skipped: dict[str, str]) -> str:
    if num_files:
        what = f"none of the {num_files} files of {source!r} is a picture"
    else:
        what = f"{source!r} is empty" if Path(source).is_dir() else f"nothing is called {source!r}"
    if skipped:
        what += f" ({len(skipped)} were left out: {', '.join(sorted(set(skipped.values())))}; a .txt list may name links)"
    return f"{what}: expected {_KINDS}"


def _references(root: Path, relative: Sequence[str]) -> list[Reference]:
    return [
        Reference(key=key, image_id=image_id_from_path(name), path=root / name, origin=_printable(name))
        for key, name in zip(keys_from_paths(relative), relative, strict=True)
    ]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_EXTENSIONS)


def _printable(name: str) -> str:
    """The name as text that any terminal and JSON takes, also where the file system's bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
