"""Read and write a run's `last.ckpt`: atomically, in one file or with its tensors sharded over the processes.

In a sharded checkpoint, `last.ckpt` holds everything but the tensors, and the name of the folder beside it that holds them
(torch.distributed.checkpoint). Each process writes its own shards, and any number of processes can read them. `last.ckpt` is
written after the folder is complete, so that a kill at any moment leaves a complete checkpoint: the new one or the previous one.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from sam_train.checkpoint import atomic_torch_save
from sam_train.errors import CheckpointError
from sam_train.renames import CALLBACKS

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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint IO with an atomic write: a temporary file beside the checkpoint, which is then renamed.

    Lightning's own IO writes to the system's folder for temporary files. If that is on another disk, the file is copied from
    there, and a kill during the copy leaves a truncated last.ckpt, from which the run cannot resume.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint in one file and remove the tensor folders of earlier ones.

        Raises TypeError if `storage_options` are given: they are for remote file systems.
        """
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems, but checkpoints are written to a local folder")
        atomic_torch_save(Path(path), checkpoint)
        remove_tensor_folders(Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the checkpoint at `path` with full tensors, also if it is sharded.

        Raises CheckpointError if the folder of a sharded checkpoint is missing or incomplete.
        """
        document = upgrade_callback_names(super().load_checkpoint(path, *args, **kwargs))
        return load_sharded_tensors(document, Path(path), document[TENSOR_FOLDER_KEY]) if is_sharded(document) else document


def upgrade_callback_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return a loaded checkpoint whose callback states have today's class names (`renames.CALLBACKS`)."""
    if "callbacks" not in document:
        return document
    return {**document, "callbacks": {CALLBACKS.get(name, name): state for name, state in document["callbacks"].items()}}


def map_tensors(node: Any, function: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """Return a copy of nested containers in which each tensor is replaced by `function(path, tensor)`.

    The path of a tensor is the keys and indices that lead to it, joined by "/".
    """
    if isinstance(node, Tensor):
        return function(path, node)
    if isinstance(node, Mapping):
        return {key: map_tensors(value, function, f"{path}/{key}") for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map_tensors(value, function, f"{path}/{i}") for i, value in enumerate(node))
    return node


def save_sharded(checkpoint: Mapping[str, Any], path: Path, folder: str, *, is_rank_zero: bool) -> None:
    """Write a sharded checkpoint: the tensors to `folder` beside `path`, everything else to `path`.

    Every process must call it, with its own shards and with the same new folder name.
    """
    tensors: dict[str, Tensor] = {}

    def extract(tensor_path: str, tensor: Tensor) -> dict[str, str]:
        tensors[tensor_path] = tensor
        return {TENSOR_KEY: tensor_path}

    document = map_tensors(checkpoint, extract)
    dcp.save(tensors, checkpoint_id=path.parent / folder)  # returns after all processes have written
    if not is_rank_zero:
        return
    atomic_torch_save(path, {**document, TENSOR_FOLDER_KEY: folder})
    remove_tensor_folders(path, keep=folder)


def remove_tensor_folders(path: Path, *, keep: str = "") -> None:
    """Remove the tensor folders of earlier checkpoints at `path` and of interrupted writes, except the folder `keep`."""
    for folder in path.parent.glob("step-*"):
        if folder.is_dir() and folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


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
