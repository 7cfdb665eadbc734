"""Where a run that was killed goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from sam_train.checkpoint import write_checkpoint_atomically
from sam_train.renames import CALLBACKS
from sam_train.training.sharded_checkpoint import FOLDER, is_in_shares, remove_folders, with_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final name and then renamed.

    Lightning's own go through the system's folder for temporary files. Where that is another disk they are copied from
    there, and a kill in the middle leaves half a last.ckpt, with which no run goes on.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """`storage_options` belong to remote file systems and are refused."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems; checkpoints are written to a folder")
        write_checkpoint_atomically(Path(path), checkpoint)
        remove_folders(Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Also one in shares, made whole. Raises CheckpointError when its folder is not."""
        document = super().load_checkpoint(path, *args, **kwargs)
        document["callbacks"] = {CALLBACKS.get(name, name): state for name, state in document["callbacks"].items()}
        return with_tensors(document, Path(path), document[FOLDER]) if is_in_shares(document) else document
