"""Checkpoints in shares: each process writes what it has, and any number of processes reads what it needs.

`last.ckpt` then holds all but the tensors, and the name of the folder beside it that has them (torch.distributed.checkpoint).
It is written when the folder is complete, so that a kill at any moment leaves a checkpoint: the new one or the one before.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from sam_train.checkpoint import write_checkpoint_atomically
from sam_train.errors import CheckpointError

FOLDER, TENSOR = "folder of the tensors", "tensor of the folder"

_CONTENTS = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
        *("BytesStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
}
"""What a table of contents is made of, by module."""


def map_tensors(node: Any, change: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """The same containers with each tensor changed; `change` is also told its place, the keys on the way joined by "/"."""
    if isinstance(node, Tensor):
        return change(path, node)
    if isinstance(node, Mapping):
        return {key: map_tensors(value, change, f"{path}/{key}") for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map_tensors(value, change, f"{path}/{i}") for i, value in enumerate(node))
    return node


def save_in_shares(checkpoint: Mapping[str, Any], path: Path, folder: str, *, is_first: bool) -> None:
    """Write a checkpoint; every process comes here with its shares and the same new name for the `folder` beside `path`."""
    tensors: dict[str, Tensor] = {}

    def take(place: str, tensor: Tensor) -> dict[str, str]:
        tensors[place] = tensor
        return {TENSOR: place}

    rest = map_tensors(checkpoint, take)
    dcp.save(tensors, checkpoint_id=path.parent / folder)  # returns when all have written
    if not is_first:
        return
    write_checkpoint_atomically(path, {**rest, FOLDER: folder})
    remove_folders(path, but=folder)


def remove_folders(path: Path, *, but: str = "") -> None:
    """Remove the folders that checkpoints before the one at `path` had, and those of killed attempts."""
    for folder in path.parent.glob("step-*"):
        if folder.is_dir() and folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def is_in_shares(document: Mapping[str, Any]) -> bool:
    """Whether the tensors of a checkpoint lie in a folder beside it."""
    return FOLDER in document


def with_tensors(node: Any, path: Path, folder: str, like: Callable[[str], Tensor | None] = lambda place: None) -> Any:
    """What was read from the checkpoint at `path`, or a part of it, with its tensors, from the `folder` that it names.

    like: for a place, a tensor of a process's share to read into; None reads it whole.
    Raises CheckpointError when the folder is not there or not whole.
    """
    reader = _Reader(_folder(path, folder))
    try:
        known = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Any] = {}
        for place in _places(node):
            share, stored = like(place), known[place]
            tensors[place] = torch.empty(stored.size, dtype=stored.properties.dtype) if share is None else share  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads for itself: meant so
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # each way of being wrong has a type of its own
        raise CheckpointError(f"{reader.path}, which {path} names, is no whole folder of tensors: {error}") from error
    return _filled(node, tensors)


class _Reader(FileSystemReader):
    """torch's, but the folder's table of contents is unpickled to nothing that such a table is not made of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata = _Unpickler(stream).load()
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"it names a file outside, {info.relative_path!r}")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CONTENTS.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _folder(path: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{path} names {name!r} as the folder beside it that has its tensors")
    return path.parent / name


def _places(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        return [node[TENSOR]] if TENSOR in node else [place for value in node.values() for place in _places(value)]
    return [place for value in node for place in _places(value)] if isinstance(node, (list, tuple)) else []


def _filled(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, Mapping):
        return tensors[node[TENSOR]] if TENSOR in node else {key: _filled(value, tensors) for key, value in node.items()}
    return type(node)(_filled(value, tensors) for value in node) if isinstance(node, (list, tuple)) else node
