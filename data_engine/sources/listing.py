"""What a source names, in one fixed order. Nothing is decoded: names of files, headers of tars, answers of a store."""

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
"""Every reason in `Source.skipped`."""

ENGINE_MARKER_FILE = "engine.json"
"""The engine's own mark in a folder of shards, which may then hold pictures too: those of its report."""

_KINDS = (
    f"a folder of pictures ({' '.join(IMAGE_EXTENSIONS)}), a glob of such, a .txt list with one path or URL a line,"
    " or SA-1B tars (a .tar, a glob or brace range of them, or a folder that holds them), each of them here or at a URL"
)


def list_source(name: str) -> tuple[ImageReferences, dict[str, str]]:
    """References, and what was found but not listed: relative path -> one of LISTING_REASONS. See `open_source`."""
    if is_remote(name):
        return _far_references(name), {}
    if name.endswith(".tar") or _holds_shards(name):
        return _shard_references(expand_shards(name)), {}
    if os.path.isdir(name):
        return _found(name, list(_walk(name)), source=name)
    if name.lower().endswith(".txt"):
        return _list_references(name), {}
    return _glob_references(name)


def _far_references(url: str) -> ImageReferences:
    if url.lower().endswith(".txt"):
        root = url.rpartition("/")[0]
        named = [(number, line) for number, line in _lines(read_remote_text(url))]
        return ImageReferences.from_images(root, [line for _, line in _not_empty(named, url)])
    if url.endswith(".tar"):
        return ImageReferences.from_samples(list_remote_shards(url))
    root, names = list_remote_names(url)
    if any(name.endswith(".tar") for name in names):
        return ImageReferences.from_samples(list_remote_shards(url))
    pictures = [name for name in names if _is_picture(name)]
    if not pictures:
        raise ConfigError(_nothing_found(url, num_files=len(names), skipped={}))
    return ImageReferences.from_images(root, pictures)


def _holds_shards(folder: str) -> bool:
    if not os.path.isdir(folder) or not any(name.endswith(".tar") for name in os.listdir(folder)):
        return False
    pictures = () if os.path.exists(os.path.join(folder, ENGINE_MARKER_FILE)) else (n for n, _ in _walk(folder) if _is_picture(n))
    for picture in pictures:
        raise ConfigError(
            f"{folder} holds shards and pictures (such as {picture}): name '{folder}/*.tar', or put the pictures elsewhere"
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
    if path.is_file():  # before it is looked at as a pattern: its name may hold a bracket
        return _found(str(path.parent), [(path.name, _kind(pattern))], source=pattern)
    literal = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)
    root = str(Path(*path.parts[:literal]))
    matches = (match for match in glob.iglob(pattern, recursive=True) if not os.path.isdir(match))
    inside = _LinkChecker(root)
    names = [(os.path.relpath(match, root), inside.kind(match) if _is_picture(match) else "") for match in matches]
    return _found(root, names, source=pattern)


def _list_references(name: str) -> ImageReferences:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no such list: {path}. Expected a text file with the path or URL of one picture a line")
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    named = _not_empty(list(_lines(text)), name)
    folder = os.path.abspath(path.parent)
    for number, line in named:
        if not is_remote(line) and not os.path.isfile(os.path.join(folder, line)):
            raise ConfigError(f"{path}, line {number}: no such file {printable_name(line)!r} (relative to {path.parent})")
    return ImageReferences.from_images(folder, [line if is_remote(line) else os.path.normpath(line) for _, line in named])


def _lines(text: str) -> Iterable[tuple[int, str]]:
    """Numbers and lines, empty ones left out. Not splitlines: a name may hold what that takes for an end."""
    return ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _not_empty(named: list[tuple[int, str]], name: str) -> list[tuple[int, str]]:
    if not named:
        raise ConfigError(f"the list {name} is empty: expected the path or URL of one picture a line")
    return named


def _walk(root: str, below: str = "") -> Iterable[tuple[str, str]]:
    """Names relative to the root of all files and linked folders with "" or a reason against them; hidden ones are left out.

    What the folder itself says of its entries is believed, so a plain file costs no call of its own.
    """
    inside, folders = _LinkChecker(root), []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}{entry.name}"
            if entry.is_symlink():
                yield name, inside.kind(entry.path)
            elif entry.is_dir():
                folders.append(f"{name}/")
            else:
                yield name, "" if entry.is_file() else "not_a_file"
    for folder in folders:
        yield from _walk(root, folder)


class _LinkChecker:
    """Whether links lead out of a folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root or ".")
        self._parents: dict[str, str] = {}

    def kind(self, path: str) -> str:
        """ "" for a file inside, else one of LISTING_REASONS."""
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


def _kind(path: str) -> str:
    return _LinkChecker(os.path.dirname(path)).kind(path)


def _found(root: str, names: list[tuple[str, str]], *, source: str) -> tuple[ImageReferences, dict[str, str]]:
    """References and what is left out of the files that a search came upon, each with a reason or "" if there is none."""
    names.sort()
    skipped = {printable_name(n): reason for n, reason in names if reason and (reason == "linked_folder" or _is_picture(n))}
    kept = [name for name, reason in names if not reason and _is_picture(name)]
    if not kept:
        raise ConfigError(_nothing_found(source, num_files=len(names), skipped=skipped))
    return ImageReferences.from_images(os.path.abspath(root), kept), skipped


def _nothing_found(source: str, *, num_files: int, skipped: dict[str, str]) -> str:
    if num_files:
        what = f"none of the {num_files} files of {source!r} is a picture"
    else:
        what = f"{source!r} is empty" if Path(source).is_dir() else f"nothing is called {source!r}"
    if skipped:
        what += f" ({len(skipped)} were left out: {', '.join(sorted(set(skipped.values())))}; a .txt list may name links)"
    return f"{what}: expected {_KINDS}"


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)
