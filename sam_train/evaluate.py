"""Measure a checkpoint by a protocol.

    sam-evaluate checkpoint=runs/nuclei/model.pt shards='runs/nuclei_shards/heldout'
    sam-evaluate checkpoint=mobile_sam.pth protocol=edges protocol.images=BSDS/images/test protocol.labels=BSDS/groundTruth/test

Prints the figures, the paper's beside them where it has some, and writes them to `out` as JSON. With `journal`, each image's
measurement is kept: the same command goes on where it was stopped, and `slice=0/4` ... `slice=3/4` share the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.cli.commands import EVALUATE
from sam_train.config import build, to_plain
from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import EvaluationImage, EvaluationProtocol, Measurement, Summary
from sam_train.evaluation.result_cache import ResultCache
from sam_train.files import atomic_write_bytes
from sam_train.inference import Predictor
from sam_train.subsets import evenly_spaced_indices, parse_slice


def main() -> None:
    """Run `sam-evaluate` on the process's arguments."""
    EVALUATE.main()


def command(cfg: DictConfig) -> None:
    """Do what the composed config says."""
    run(cfg)


def run(cfg: DictConfig) -> Mapping[str, float]:
    """Evaluate as the config says; the figures that were also written to `out`, none while other slices are not done."""
    if not cfg.checkpoint:
        raise ConfigError("sam-evaluate needs checkpoint=FILE: the model.pt of a run, or released weights")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    protocol: EvaluationProtocol = build(cfg.protocol)
    everything = protocol.list_images(cfg.shards)
    images = _spread(everything, cfg.max_images)
    predictor = Predictor(load_checkpoint(Path(cfg.checkpoint), cfg.device))
    journal = ResultCache(Path(cfg.journal), _what(cfg, everything)) if cfg.journal else None
    measured = _measure(protocol, predictor, _slice(images, cfg.slice, journal), journal)
    if journal:
        measured = [m for m in map(journal.load, images) if m is not None]
    if len(measured) < len(images):
        print(f"{len(measured)} of {len(images)} images are measured; when all slices are, give this command without slice=")
        return {}
    summary = protocol.summarize(measured)
    if cfg.out:
        document = _document(checkpoint_hash(Path(cfg.checkpoint)), summary)
        atomic_write_bytes(Path(cfg.out), (json.dumps(document, indent=1) + "\n").encode())
    _print(summary)
    return summary.measures


def _spread(images: Sequence[EvaluationImage], max_images: int | None) -> Sequence[EvaluationImage]:
    """All, or so many of them at even distances."""
    if max_images is None or max_images >= len(images):
        return images
    if max_images < 1:
        raise ConfigError(f"max_images must be 1 or more, or null for all, got {max_images}")
    return [images[i] for i in evenly_spaced_indices(len(images), max_images, at="start")]


def _slice(images: Sequence[EvaluationImage], part: str | None, journal: ResultCache | None) -> Sequence[EvaluationImage]:
    if part is None:
        return images
    selection = parse_slice(part)
    if journal is None:
        raise ConfigError("slice= needs journal=FOLDER, where the slices meet")
    return images[selection]


def _what(cfg: DictConfig, images: Sequence[EvaluationImage]) -> dict[str, Any]:
    """What a measurement depends on. Of the data, the names of all images: their pixels are taken to stay."""
    names = hashlib.sha256("\n".join(f"{image.number} {image.name}" for image in images).encode()).hexdigest()
    return {"checkpoint": checkpoint_hash(Path(cfg.checkpoint)), "protocol": to_plain(cfg.protocol), "images": names}


def _measure(
    protocol: EvaluationProtocol, predictor: Predictor, images: Sequence[EvaluationImage], journal: ResultCache | None
) -> list[Measurement]:
    measured = []
    for image in track(images, description="evaluating"):
        found = journal.load(image) if journal else None
        if found is None:
            found = protocol.measure(predictor, image)
            if journal:
                journal.save(image, found)
        measured.append(found)
    return measured


def _document(checkpoint: str, summary: Summary) -> dict[str, Any]:
    """Measures stand at the top: what promotes a model looks for them there."""
    rest = {"paper": summary.paper, "rows": summary.rows, "notes": summary.notes}
    return {"checkpoint": checkpoint, **summary.measures, **{name: value for name, value in rest.items() if value}}


def _print(summary: Summary) -> None:
    console = Console()
    table = Table("measure", "value", *summary.paper)
    for name, value in summary.measures.items():
        table.add_row(name, _shown(value), *(_shown(figures.get(name)) for figures in summary.paper.values()))
    console.print(table)
    if summary.columns:
        parts = Table(*summary.columns.values(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for row in summary.rows:
            parts.add_row(*(_shown(row[name], digits=3) for name in summary.columns))
        console.print(parts)
    for note in summary.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _shown(value: object, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
