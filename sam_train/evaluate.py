"""Measure a checkpoint on shards.

    sam-evaluate checkpoint=runs/nuclei/model.pt shards='runs/nuclei_shards/heldout'

Prints the means and writes them to `out` as JSON.
"""

from __future__ import annotations

import json
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
from sam_train.files import commit_file
from sam_train.inference import Predictor
from sam_train.shards import expand_shards
from sam_train.shards.index import index_shard, read_sample


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
    protocol = build(cfg.protocol)
    entries = [entry for shard in expand_shards(cfg.shards) for entry in index_shard(shard)]
    samples = track((read_sample(entry) for entry in entries), description="evaluating", total=len(entries))
    summary = protocol.run(predictor, samples).summary()
    if not summary["num_masks"]:
        raise ConfigError(
            f"{cfg.shards} has no mask to measure by in {len(entries)} images: name others, or lower protocol.min_area_px"
        )
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
