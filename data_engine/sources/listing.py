"""Listing of a source in one fixed order, from file names, tar headers and object-store listings. Nothing is decoded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_engine.sources.references import ImageReferences, printable_name
from data_engine.sources.remote import list_remote_names, list_remote_shards, read_remote_text
from sam_train.errors import ConfigError
from sam_train.shards import expand_shards
from sam_train.shards.image_io import IMAGE_EXTENSIONS
from sam_train.shards.index import index_shard
from sam_train.shards.remote import is_remote

LISTING_REASONS = ("outside_source", "linked_folder", "not_a_file")
"""All reasons in `Source.skipped`."""

ENGINE_MARKER_FILE = "engine.json"
"""File by which the engine marks its run folder. Such a folder of shards may also contain images, those of its report."""

_KINDS = (
    f"a folder of images ({' '.join(IMAGE_EXTENSIONS)}), a glob of images, a .txt list with one path or URL per line,"
    " or SA-1B tars (a .tar, a glob or brace range of tars, or a folder of tars), each of them local or at a URL"
)


def list_source(name: str) -> tuple[ImageReferences, dict[str, str]]:
    """Return the references, and the files that were found but not listed: relative path -> one of LISTING_REASONS.

    See `open_source` for the forms of `name` and the errors.
    """
    if is_remote(name):
        return _remote_references(name), {}
    if name.endswith(".tar") or _holds_shards(name):
        return _shard_references(expand_shards(name)), {}
    if os.path.isdir(name):
        return _select_images(name, list(_walk(name)), source=name)
    if name.lower().endswith(".txt"):
        return _list_references(name), {}
    return _glob_references(name)


def _remote_references(url: str) -> ImageReferences:
    if url.lower().endswith(".txt"):
        root = url.rpartition("/")[0]
        lines = list(_numbered_lines(read_remote_text(url)))
        return ImageReferences.from_images(root, [line for _, line in _check_not_empty(lines, url)])
    if url.endswith(".tar"):
        return ImageReferences.from_samples(list_remote_shards(url))
    root, names = list_remote_names(url)
    if any(name.endswith(".tar") for name in names):
        return ImageReferences.from_samples(list_remote_shards(url))
    images = [name for name in names if _is_image(name)]
    if not images:
        raise ConfigError(_no_images_message(url, num_files=len(names), skipped={}))
    return ImageReferences.from_images(root, images)


def _holds_shards(folder: str) -> bool:
    if not os.path.isdir(folder) or not any(name.endswith(".tar") for name in os.listdir(folder)):
        return False
    images = () if os.path.exists(os.path.join(folder, ENGINE_MARKER_FILE)) else (n for n, _ in _walk(folder) if _is_image(n))
    for image in images:
        raise ConfigError(
            f"{folder} contains shards and images (such as {image}): use '{folder}/*.tar', or move the images elsewhere"
        )
    return True


def _shard_references(shards: Sequence[Path]) -> ImageReferences:
    indexed = [(os.path.abspath(shard), index_shard(shard)) for shard in shards]
    if not any(len(index) for _, index in indexed):
        raise ConfigError(
            f"no samples in {', '.join(str(shard) for shard in shards[:3])}: expected pairs of KEY.jpg and KEY.json"
        )
    return ImageReferences.from_samples(
        [(name, np.char.decode(i.keys, "ascii").tolist(), i.columns) for name, i in indexed if len(i)]
    )


def _glob_references(pattern: str) -> tuple[ImageReferences, dict[str, str]]:
    path = Path(pattern)
    if path.is_file():  # checked first, because a file name may contain a bracket
        return _select_images(str(path.parent), [(path.name, _link_reason(pattern))], source=pattern)
    literal = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)
    root = str(Path(*path.parts[:literal]))
    matches = (match for match in glob.iglob(pattern, recursive=True) if not os.path.isdir(match))
    links = _LinkChecker(root)
    names = [(os.path.relpath(match, root), links.reason(match) if _is_image(match) else "") for match in matches]
    return _select_images(root, names, source=pattern)


def _list_references(name: str) -> ImageReferences:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no such list: {path}. Expected a text file with the path or URL of one image per line")
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = _check_not_empty(list(_numbered_lines(text)), name)
    folder = os.path.abspath(path.parent)
    for number, line in lines:
        if not is_remote(line) and not os.path.isfile(os.path.join(folder, line)):
            raise ConfigError(f"{path}, line {number}: no such file {printable_name(line)!r} (relative to {path.parent})")
    return ImageReferences.from_images(folder, [line if is_remote(line) else os.path.normpath(line) for _, line in lines])


def _numbered_lines(text: str) -> Iterable[tuple[int, str]]:
    """Return the non-empty lines with their numbers. Not splitlines, because a file name may contain other line separators."""
    return ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _check_not_empty(lines: list[tuple[int, str]], name: str) -> list[tuple[int, str]]:
    if not lines:
        raise ConfigError(f"the list {name} is empty: expected the path or URL of one image per line")
    return lines


def _walk(root: str, below: str = "") -> Iterable[tuple[str, str]]:
    """Yield all files and linked folders, relative to the root, each with a reason to skip it or "". Hidden ones are ignored.

    The type of an entry comes from the directory listing, so a regular file needs no system call of its own.
    """
    links, folders = _LinkChecker(root), []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}{entry.name}"
            if entry.is_symlink():
                yield name, links.reason(entry.path)
            elif entry.is_dir():
                folders.append(f"{name}/")
            else:
                yield name, "" if entry.is_file() else "not_a_file"
    for folder in folders:
        yield from _walk(root, folder)


class _LinkChecker:
    """Checks whether symbolic links lead out of a folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root or ".")
        self._parents: dict[str, str] = {}

    def reason(self, path: str) -> str:
        """Return "" for a file inside the folder, else one of LISTING_REASONS."""
        if os.path.isdir(path):
            return "linked_folder"
        if not os.path.isfile(path):
            return "not_a_file"
        parent = os.path.dirname(path)
        if os.path.islink(path):
            real = os.path.realpath(path)
        else:
            if parent not in self._parents:
                self._parents[parent] = os.path.realpath(parent or ".")
            real = os.path.join(self._parents[parent], os.path.basename(path))
        return "" if os.path.commonpath([real, self.root]) == self.root else "outside_source"


def _link_reason(path: str) -> str:
    return _LinkChecker(os.path.dirname(path)).reason(path)


def _select_images(root: str, names: list[tuple[str, str]], *, source: str) -> tuple[ImageReferences, dict[str, str]]:
    """Return references to the images among the files of a search, and the skipped ones.

    names: relative names, each with the reason to skip it or "".
    """
    names.sort()
    skipped = {printable_name(n): reason for n, reason in names if reason and (reason == "linked_folder" or _is_image(n))}
    kept = [name for name, reason in names if not reason and _is_image(name)]
    if not kept:
        raise ConfigError(_no_images_message(source, num_files=len(names), skipped=skipped))
    return ImageReferences.from_images(os.path.abspath(root), kept), skipped


def _no_images_message(source: str, *, num_files: int, skipped: dict[str, str]) -> str:
    if num_files:
        what = f"none of the {num_files} files of {source!r} is an image"
    else:
        what = f"{source!r} is empty" if Path(source).is_dir() else f"{source!r} does not exist"
    if skipped:
        what += f" ({len(skipped)} were skipped: {', '.join(sorted(set(skipped.values())))}; a .txt list may name links)"
    return f"{what}: expected {_KINDS}"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)
