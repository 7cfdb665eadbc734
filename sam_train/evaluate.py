"""Measure a checkpoint on shards.

    sam-evaluate checkpoint=runs/nuclei/model.pt shards='runs/nuclei_shards/heldout'

Prints the means and writes them to `out` as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam_train.checkpoint import checkpoint_hash, load_checkpoint
from sam_train.config import build, config_dir
from sam_train.errors import ConfigError, exit_with_message
from sam_train.inference import Predictor
from sam_train.shards import Sample, commit_file, expand_shards, iterate_samples


@hydra.main(config_path=config_dir(), config_name="evaluate", version_base="1.3")
@exit_with_message
def main(cfg: DictConfig) -> None:
    """Console script `sam-evaluate`."""
    run(cfg)


def run(cfg: DictConfig) -> dict[str, float]:
    """Evaluate as the config says; the means that were also written to `out`."""
    if not cfg.checkpoint or not cfg.shards:
        raise ConfigError("sam-evaluate needs checkpoint=FILE and shards=FOLDER (or a glob of .tar files)")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    predictor = Predictor(load_checkpoint(Path(cfg.checkpoint), cfg.device))
    samples: Iterable[Sample] = iterate_samples(expand_shards(cfg.shards))
    result = build(cfg.protocol).run(predictor, track(list(samples), description="evaluating"))
    summary = result.summary()
    document = {"checkpoint": checkpoint_hash(Path(cfg.checkpoint)), **summary}
    if cfg.out:
        commit_file(Path(cfg.out), (json.dumps(document, indent=1) + "\n").encode())
    table = Table("measure", "value")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
    return summary


if __name__ == "__main__":
    main()
