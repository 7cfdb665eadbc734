"""Where a run that was killed goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from sam_train.checkpoint import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their final name and then renamed.

    Lightning's own go through the system's folder for temporary files. Where that is another disk they are copied from
    there, and a kill in the middle leaves half a last.ckpt, with which no run goes on.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """`storage_options` belong to remote file systems and are refused."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems; checkpoints are written to a folder")
        write_whole(Path(path), checkpoint)
