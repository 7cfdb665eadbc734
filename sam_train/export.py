"""Export a checkpoint for other programs.

    sam-export checkpoint=runs/nuclei/model.pt out=runs/nuclei/onnx
    sam-export checkpoint=model.pt out=FOLDER format=huggingface
    sam-export checkpoint=runs/nuclei out=FOLDER format=pt       # the last checkpoint of an unfinished run

`format=onnx` writes encoder.onnx and decoder.onnx. Both are compared with torch on random prompts; the differences are printed,
and nothing is written if they are too large. pth, safetensors and huggingface are the weights under released names, pt is this
project's model.pt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from sam_train.checkpoint import checkpoint_hash, export_weights, load_checkpoint, save_checkpoint
from sam_train.cli.commands import EXPORT
from sam_train.errors import ConfigError, install_extra
from sam_train.model import Sam

LAST_CHECKPOINT = "checkpoints/last.ckpt"
RELEASED_FILES = {"pth": "model.pth", "safetensors": "model.safetensors", "huggingface": "huggingface"}


def main() -> None:
    """Run `sam-export` on the process's arguments."""
    EXPORT.main()


def command(cfg: DictConfig) -> None:
    """Run the export that the composed config describes."""
    run(cfg)


def run(cfg: DictConfig) -> list[Path]:
    """Export a checkpoint as the config says and return the written files.

    Raises ConfigError for missing keys or an unknown format, and CheckpointError if ONNX outputs differ from torch.
    """
    if not cfg.checkpoint or not cfg.out:
        raise ConfigError("sam-export needs checkpoint=FILE and out=FOLDER")
    if cfg.format not in ("onnx", "pt", *RELEASED_FILES):
        raise ConfigError(f"format must be one of onnx, pt, {', '.join(RELEASED_FILES)}, got {cfg.format!r}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    checkpoint = Path(cfg.checkpoint)
    if cfg.format == "onnx":
        return _export_onnx(cfg)
    if cfg.format == "pt":
        path = Path(cfg.out) / "model.pt"
        save_checkpoint(path, *_load_run(checkpoint))
    else:
        path = Path(cfg.out) / RELEASED_FILES[cfg.format]
        export_weights(_load(checkpoint), path)
    Console().print(f"wrote {path}", soft_wrap=True)
    return [path]


def _is_run(checkpoint: Path) -> bool:
    return (checkpoint / LAST_CHECKPOINT).is_file()


def _load_run(folder: Path) -> tuple[Sam, dict[str, Any], dict[str, Any]]:
    from sam_train.training.factory import load_run_model  # imports the trainer

    return load_run_model(folder)


def _load(checkpoint: Path) -> Sam:
    """Return the model of a checkpoint, or of the last checkpoint of an unfinished run."""
    return _load_run(checkpoint)[0].eval() if _is_run(checkpoint) else load_checkpoint(checkpoint)


def _export_onnx(cfg: DictConfig) -> list[Path]:
    try:
        from sam_train.inference.export import ExportOptions, export_onnx
    except ModuleNotFoundError as error:
        raise ConfigError(f"format=onnx needs {error.name}: {install_extra('onnx')}") from error
    checkpoint = Path(cfg.checkpoint)
    exported = export_onnx(
        _load(checkpoint),
        Path(cfg.out),
        options=ExportOptions(**cfg.options),
        precisions=list(cfg.precisions),
        encoder=cfg.encoder,
        checkpoint_sha256=checkpoint_hash(checkpoint / LAST_CHECKPOINT if _is_run(checkpoint) else checkpoint),
    )
    table = Table(
        "file", "MB", "values", "scores", "pixels", title="Largest difference from torch, relative to its largest value"
    )
    for file in exported:
        parity, size = file.parity, file.path.stat().st_size / 1e6
        pixels = f"{parity.differing_pixels} of {parity.num_pixels}" if parity.num_pixels else ""
        table.add_row(file.path.name, f"{size:.1f}", f"{parity.mask_difference:.1e}", f"{parity.score_difference:.1e}", pixels)
    Console().print(table)
    return [file.path for file in exported]


if __name__ == "__main__":
    main()
