"""Read checkpoints whose tensors lie in a folder beside them, sharded over the processes that wrote them.

Such a checkpoint holds everything but the tensors, and the name of the folder that holds them (torch.distributed.checkpoint).
Any number of processes can read them.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from sam_train.errors import CheckpointError

TENSOR_FOLDER_KEY = "folder of the tensors"
"""Key of `last.ckpt` that holds the name of the folder with the tensors."""

TENSOR_KEY = "tensor of the folder"
"""Key of the dict that stands in `last.ckpt` for a tensor; its value is the tensor's path in the checkpoint."""

_METADATA_CLASSES = {
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
"""Classes that the `.metadata` pickle of a tensor folder may contain, by module."""


def is_sharded(document: Mapping[str, Any]) -> bool:
    """Return whether the tensors of a loaded checkpoint are in a folder beside it."""
    return TENSOR_FOLDER_KEY in document


def load_sharded_tensors(
    node: Any, path: Path, folder: str, make_shard: Callable[[str], Tensor | None] = lambda tensor_path: None
) -> Any:
    """Return a sharded checkpoint, or a part of it, with the tensors that its `folder` holds.

    node: the loaded document at `path`, or a part of it.
    make_shard: returns for a tensor's path this process's shard to read into, or None to read the full tensor.
    Raises CheckpointError if the folder is missing, incomplete or corrupt.
    """
    reader = _Reader(_tensor_folder(path, folder))
    try:
        stored_tensors = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Any] = {}
        for tensor_path in _tensor_paths(node):
            shard, stored = make_shard(tensor_path), stored_tensors[tensor_path]
            tensors[tensor_path] = (
                torch.empty(stored.size, dtype=stored.properties.dtype) if shard is None else shard  # type: ignore[union-attr]
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended: each process reads for itself
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # each kind of corruption raises another type
        raise CheckpointError(
            f"{reader.path}, the tensor folder of {path}, is missing, incomplete or corrupt: {error}; restore it, or remove "
            "the run folder to start again"
        ) from error
    return _with_tensors(node, tensors)


class _Reader(FileSystemReader):
    """torch's reader, except that the folder's `.metadata` may only unpickle to the classes that such metadata consists of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata = _Unpickler(stream).load()
        for info in metadata.storage_data.values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"its metadata names a file outside the folder, {info.relative_path!r}")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata contains {module}.{name}, which is not allowed")


def _tensor_folder(path: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{path} names {name!r} as its tensor folder: expected the name of a folder beside it")
    return path.parent / name


def _tensor_paths(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        return [node[TENSOR_KEY]] if TENSOR_KEY in node else [path for value in node.values() for path in _tensor_paths(value)]
    return [path for value in node for path in _tensor_paths(value)] if isinstance(node, (list, tuple)) else []


def _with_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, Mapping):
        return (
            tensors[node[TENSOR_KEY]]
            if TENSOR_KEY in node
            else {key: _with_tensors(value, tensors) for key, value in node.items()}
        )
    return type(node)(_with_tensors(value, tensors) for value in node) if isinstance(node, (list, tuple)) else node
