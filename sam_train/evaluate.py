"""Evaluate a checkpoint by a protocol.

    sam-evaluate checkpoint=runs/nuclei/model.pt shards='runs/nuclei_shards/heldout'
    sam-evaluate checkpoint=mobile_sam.pth protocol=edges protocol.images=BSDS/images/test protocol.labels=BSDS/groundTruth/test

Prints the results, beside the paper's where it reports some, and writes them to `out` as JSON. With `result_cache`, the
measurement of each image is stored: the same command resumes an interrupted evaluation, and `slice=0/4` ... `slice=3/4`
divide it.
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
    """Run the evaluation that the composed config describes."""
    run(cfg)


def run(cfg: DictConfig) -> Mapping[str, float]:
    """Evaluate a checkpoint as the config says and return the measures, which are also written to `out`.

    Returns no measures as long as other slices are incomplete. Raises ConfigError if `checkpoint` is missing.
    """
    if not cfg.checkpoint:
        raise ConfigError("sam-evaluate needs checkpoint=FILE: the model.pt of a run, or released weights")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    protocol: EvaluationProtocol = build(cfg.protocol)
    all_images = protocol.list_images(cfg.shards)
    images = _subsample(all_images, cfg.max_images)
    sha256 = checkpoint_hash(cfg.checkpoint)  # before hours of measuring, in which the file may be replaced
    predictor = Predictor(load_checkpoint(cfg.checkpoint, cfg.device))
    result_cache = ResultCache(Path(cfg.result_cache), _settings(cfg, sha256, all_images)) if cfg.result_cache else None
    measurements = _measure(protocol, predictor, _slice(images, cfg.slice, result_cache), result_cache)
    if result_cache:
        measurements = [m for m in map(result_cache.load, images) if m is not None]
    if len(measurements) < len(images):
        print(f"{len(measurements)} of {len(images)} images are measured; after all slices, run this command without slice=")
        return {}
    summary = protocol.summarize(measurements)
    if cfg.out:
        document = _document(sha256, summary)
        atomic_write_bytes(Path(cfg.out), (json.dumps(document, indent=1) + "\n").encode())
    _print_summary(summary)
    return summary.measures


def _subsample(images: Sequence[EvaluationImage], max_images: int | None) -> Sequence[EvaluationImage]:
    """Return all images, or `max_images` of them at even distances."""
    if max_images is None or max_images >= len(images):
        return images
    if max_images < 1:
        raise ConfigError(f"max_images must be 1 or more, or null for all, got {max_images}")
    return [images[i] for i in evenly_spaced_indices(len(images), max_images, at="start")]


def _slice(images: Sequence[EvaluationImage], part: str | None, result_cache: ResultCache | None) -> Sequence[EvaluationImage]:
    if part is None:
        return images
    selection = parse_slice(part)
    if result_cache is None:
        raise ConfigError("slice= needs result_cache=FOLDER, which all slices share")
    return images[selection]


def _settings(cfg: DictConfig, checkpoint_sha256: str, images: Sequence[EvaluationImage]) -> dict[str, Any]:
    """Return everything that measurements depend on; of the data, a hash of the image names, as pixels are assumed constant."""
    names = hashlib.sha256("\n".join(f"{image.number} {image.name}" for image in images).encode()).hexdigest()
    return {"checkpoint": checkpoint_sha256, "protocol": to_plain(cfg.protocol), "images": names}


def _measure(
    protocol: EvaluationProtocol, predictor: Predictor, images: Sequence[EvaluationImage], result_cache: ResultCache | None
) -> list[Measurement]:
    measurements = []
    for image in track(images, description="evaluating"):
        measurement = result_cache.load(image) if result_cache else None
        if measurement is None:
            measurement = protocol.measure(predictor, image)
            if result_cache:
                result_cache.save(image, measurement)
        measurements.append(measurement)
    return measurements


def _document(checkpoint: str, summary: Summary) -> dict[str, Any]:
    """Return the JSON document; the measures are top-level keys, where promotion of a model reads them."""
    details = {"paper": summary.paper, "rows": summary.rows, "notes": summary.notes}
    return {"checkpoint": checkpoint, **summary.measures, **{name: value for name, value in details.items() if value}}


def _print_summary(summary: Summary) -> None:
    console = Console()
    table = Table("measure", "value", *summary.paper)
    for name, value in summary.measures.items():
        table.add_row(name, _format(value), *(_format(figures.get(name)) for figures in summary.paper.values()))
    console.print(table)
    if summary.columns:
        parts = Table(*summary.columns.values(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for row in summary.rows:
            parts.add_row(*(_format(row[name], digits=3) for name in summary.columns))
        console.print(parts)
    for note in summary.notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _format(value: object, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
