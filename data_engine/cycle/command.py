"""Handlers of `sam-cycle` and its subcommands."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from data_engine.console import console
from data_engine.cycle.ablation import run_ablation
from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.provenance_table import print_provenance
from data_engine.cycle.run_cycle import load_cycle_config, run_action, run_cycle
from data_engine.cycle_folder import CycleFolder
from data_engine.cycle_folder.promotion import export_promoted_model, roll_back


def command(cfg: DictConfig) -> None:
    """Run the loop that the composed config describes."""
    run_cycle(cfg)


def step(*, run: str, name: str) -> None:
    """Execute one action, such as name=2_assisted_manual/train, as a SLURM job does."""
    run_action(CycleFolder(Path(run)), name)


def rollback(*, run: str, step: str, reason: str = "") -> None:
    """Promote the model of an earlier step again; promoted.json stores the reason."""
    folder = CycleFolder(Path(run))
    load_cycle_config(folder)
    with lock_run_folder(folder, wait=False):
        before = roll_back(folder, step=step, reason=reason)
        export_promoted_model(folder)
    console.print(f"{folder.path}: promoted the model of {step} in place of that of {before}; {folder.model} is a copy of it")


def ledger(*, run: str, image: str = "", out: str = "") -> None:
    """Write the table of masks and print a summary of it, or the masks of one image."""
    folder = CycleFolder(Path(run))
    print_provenance(folder, load_cycle_config(folder), image=image, out=Path(out) if out else None)


def ablation(*, run: str, training: str = "") -> None:
    """Train on the masks of some stages only, each time from the same model, and compare the models."""
    folder = CycleFolder(Path(run))
    cfg = load_cycle_config(folder)
    with lock_run_folder(folder, wait=False) as lock:
        run_ablation(cfg, folder, lock, training=training.split() if training else [])
