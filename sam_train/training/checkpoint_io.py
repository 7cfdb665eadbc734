"""Read and write a run's `last.ckpt`: atomically, in one file or with its tensors sharded over the processes.

In a sharded checkpoint (`sam_train.checkpoint.sharded`) each process writes its own shards. `last.ckpt` is written after the
folder is complete, so that a kill at any moment leaves a complete checkpoint: the new one or the previous one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed import checkpoint as dcp

from sam_train.checkpoint import atomic_torch_save
from sam_train.checkpoint.run_checkpoint import upgrade_callback_names
from sam_train.checkpoint.sharded import TENSOR_FOLDER_KEY, TENSOR_KEY, is_sharded, load_sharded_tensors


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
