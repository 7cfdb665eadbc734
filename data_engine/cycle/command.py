"""What `sam-cycle` and its sub-commands do."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from data_engine.console import console
from data_engine.cycle.ablation import run_ablation
from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.provenance_table import print_provenance
from data_engine.cycle.run_cycle import load_cycle_config, perform, run
from data_engine.cycle_folder.promotion import export_promoted_model, roll_back


def command(cfg: DictConfig) -> None:
    """Run a cycle as the composed config says."""
    run(cfg)


def step(*, run: str, name: str) -> None:
    """One action, such as name=2_assisted_manual/train: what a job does."""
    perform(Path(run), name)


def rollback(*, run: str, step: str, reason: str = "") -> None:
    """An earlier step's model works again, and promoted.json says since when and why."""
    run_dir = Path(run)
    load_cycle_config(run_dir)
    with lock_run_folder(run_dir, wait=False):
        before = roll_back(run_dir, step=step, reason=reason)
        export_promoted_model(run_dir)
    console.print(
        f"{run_dir}: the model of {step} works now, in place of that of {before}; {run_dir / 'model.pt'} is a copy of it"
    )


def ledger(*, run: str, image: str = "", out: str = "") -> None:
    """Who, which model and which prompts made each mask."""
    print_provenance(Path(run), load_cycle_config(Path(run)), image=image, out=Path(out) if out else None)


def ablation(*, run: str, training: str = "") -> None:
    """Train on the masks of some stages alone, all from one model, and measure."""
    run_dir = Path(run)
    cfg = load_cycle_config(run_dir)
    with lock_run_folder(run_dir, wait=False) as lock:
        run_ablation(cfg, run_dir, lock, training=training.split() if training else [])
