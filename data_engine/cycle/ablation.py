"""The paper's ablation of the data engine (section 7.6) on a finished cycle: which stages' masks a model should see.

Every set is learned from the same model, in the same number of steps, and measured on the same held-out pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from data_engine.console import console
from data_engine.cycle.overrides import hydra_quote, training_data_overrides
from data_engine.cycle.pipeline import split_shard_folders
from data_engine.cycle.subprocess_runner import ProcessLauncher
from data_engine.cycle_folder.promotion import history
from data_engine.cycle_folder.steps import parse_steps
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes

STAGES = ("assisted_manual", "semi_automatic", "fully_automatic")
SETS: Mapping[str, Sequence[str]] = {
    "manual": STAGES[:1],
    "manual_semi_automatic": STAGES[:2],
    "all": STAGES,
    "automatic": STAGES[2:],
}
"""Figure of the paper's section 7.6: stages 1, 1+2, 1+2+3, and automatic masks only."""


def run_ablation(cfg: DictConfig, run_dir: Path, lock: IO[str], *, training: Sequence[str]) -> None:
    """Train and measure once for each of SETS, in run_dir/ablation; writes ablation.json and prints it.

    All begin with the cycle's first model and have the training of its last step, changed by `training` (overrides). What is
    measured already is passed over. Raises ConfigError when a stage wrote nothing yet.
    """
    steps = parse_steps(cfg.stages)
    first = history(run_dir)[:1]
    if not first:
        raise ConfigError(f"{run_dir} has no model yet: run its cycle first")
    processes = ProcessLauncher(run_dir, lock)
    found = {}
    for name, stages in SETS.items():
        written = [step for step in steps if step.name != first[0]["step"] and (run_dir / step.name / "shards").is_dir()]
        chosen = [step for step in written if step.stage in stages]
        by_people, by_models = split_shard_folders(chosen, run_dir)
        if missing := set(stages) - {step.stage for step in chosen}:
            raise ConfigError(
                f"{run_dir} has no masks of {', '.join(sorted(missing))} (after its first model): nothing to compare"
            )
        folder = run_dir / "ablation" / name
        if not (folder / "train" / "metrics.json").is_file():
            overrides = [
                *training_data_overrides(by_people, by_models, human_mask_weight=cfg.human_mask_weight),
                f"run_dir={hydra_quote(folder / 'train')}",
            ]
            overrides += [
                f"name={hydra_quote(f'{cfg.name}-ablation-{name}')}",
                f"init_checkpoint={hydra_quote(run_dir / first[0]['checkpoint'])}",
            ]
            own = [*cfg.training, *overrides, *steps[-1].training, *training]
            processes.start(f"ablation {name}: train", "sam_train.train", *own)
        if not (folder / "evaluation.json").is_file():
            asked = [f"checkpoint={hydra_quote(folder / 'train' / 'model.pt')}", f"shards={hydra_quote(cfg.corpus.heldout)}"]
            asked += [f"out={hydra_quote(folder / 'evaluation.json')}", *cfg.evaluation]
            processes.start(f"ablation {name}: evaluate", "sam_train.evaluate", *asked)
        found[name] = {"steps": [step.name for step in chosen], **json.loads((folder / "evaluation.json").read_bytes())}
    atomic_write_bytes(run_dir / "ablation.json", (json.dumps(found, indent=1) + "\n").encode())
    console.print(results_table(found))


def results_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each set of masks."""
    measures = ("miou_at_1", "miou_at_3", "miou_at_5", "oracle_at_1")
    table = Table(
        "masks of",
        *(name.replace("miou_at_", "mIoU@").replace("oracle_at_", "oracle@") for name in measures),
        box=box.SIMPLE_HEAD,
    )
    for name, measured in found.items():
        table.add_row(name.replace("_", " "), *(f"{measured[key]:.3f}" if key in measured else "" for key in measures))
    return table
