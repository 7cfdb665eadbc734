"""Export a checkpoint for other programs.

    sam-export checkpoint=runs/nuclei/model.pt out=runs/nuclei/onnx
    sam-export checkpoint=model.pt out=FOLDER format=huggingface
    sam-export checkpoint=model.pt out=FOLDER format=safetensors half=true
    sam-export checkpoint=runs/nuclei out=FOLDER format=pt       # the folder of a run, also of an unfinished one

`format=onnx` writes encoder.onnx and decoder.onnx. Both are compared with torch on random prompts; the differences are printed,
and nothing is written if they are too large. pth and huggingface are the bare weights under released names; safetensors also
holds the model's config, so it can hold every model of this project; pt is this project's model.pt. pth, safetensors and
huggingface are read back and their predictions are compared with the model's before they are written.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from sam_train.checkpoint import (
    build_model,
    checkpoint_hash,
    export_weights,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_safetensors,
)
from sam_train.cli.commands import EXPORT
from sam_train.config import to_plain
from sam_train.errors import ConfigError, install_extra
from sam_train.inference.grid_mask_generator import THRESHOLDS_KEY, checked_thresholds

FORMATS = ("onnx", "pt", "pth", "safetensors", "huggingface")


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
    if cfg.format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {cfg.format!r}")
    if cfg.half and cfg.format != "safetensors":
        raise ConfigError(f"half=true is for format=safetensors, got format={cfg.format}: ONNX decoders have precisions=[fp16]")
    if cfg.thresholds and cfg.format not in ("safetensors", "pt"):
        raise ConfigError(f"thresholds are stored with format=safetensors and format=pt, got format={cfg.format}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.format == "onnx":
        return _export_onnx(cfg)
    content = read_checkpoint(cfg.checkpoint)
    model = build_model(content, origin=cfg.checkpoint).eval()
    provenance = dict(content.provenance)
    if cfg.thresholds:
        provenance[THRESHOLDS_KEY] = checked_thresholds(to_plain(cfg.thresholds), origin="sam-export")
    path = Path(cfg.out) / ("huggingface" if cfg.format == "huggingface" else f"model.{cfg.format}")
    if cfg.format == "pt":
        save_checkpoint(path, model, content.config, provenance)
    elif cfg.format == "safetensors":
        save_safetensors(path, model, content.config, provenance, half=cfg.half)
    else:
        export_weights(model, path)
    Console().print(f"wrote {path}", soft_wrap=True)
    return [path]


def _export_onnx(cfg: DictConfig) -> list[Path]:
    try:
        from sam_train.inference.export import ExportOptions, export_onnx
    except ModuleNotFoundError as error:
        raise ConfigError(f"format=onnx needs {error.name}: {install_extra('onnx')}") from error
    exported = export_onnx(
        load_checkpoint(cfg.checkpoint),
        Path(cfg.out),
        options=ExportOptions(**cfg.options),
        precisions=list(cfg.precisions),
        encoder=cfg.encoder,
        checkpoint_sha256=checkpoint_hash(cfg.checkpoint),
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
