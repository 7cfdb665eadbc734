"""Console script `sam-cycle`: without a word of these it runs a cycle, and what follows is Hydra's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from data_engine.console import console
from data_engine.cycle.ablation import ablate
from data_engine.cycle.lock import locked
from data_engine.cycle.provenance_table import show_ledger
from data_engine.cycle.run import load_cycle, perform, run
from data_engine.promote import publish, roll_back
from sam_train.config import config_dir
from sam_train.errors import ConfigError, exit_with_message


def main() -> None:
    """The first word decides."""
    command = WORDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        turn()
    else:
        word(command, sys.argv[2:])


@hydra.main(config_path=config_dir(), config_name="cycle", version_base="1.3")
@exit_with_message
def turn(cfg: DictConfig) -> None:
    """A cycle as the config says."""
    run(cfg)


@exit_with_message
def word(command: Callable[..., None], arguments: list[str]) -> None:
    """A command that takes NAME=VALUE for its own parameters. Raises ConfigError for another."""
    command(**values_of(command, arguments))


def values_of(command: Callable[..., None], arguments: list[str]) -> Mapping[str, str]:
    """The values by name. Raises ConfigError for a name that the command has not, or one that it lacks."""
    parameters = inspect.signature(command).parameters
    names, needed = list(parameters), [name for name, p in parameters.items() if p.default is p.empty]
    usage = " ".join([f"{n}=..." if n in needed else f"[{n}=...]" for n in names])
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name not in names:
            raise ConfigError(f"{argument!r} is not taken here: expected {usage}")
        given[name] = value
    if missing := [name for name in needed if name not in given]:
        raise ConfigError(f"{', '.join(missing)} is missing: expected {usage}")
    return given


def step(*, run: str, name: str) -> None:
    """One action, such as name=2_assisted_manual/train: what a job does."""
    perform(Path(run), name)


def rollback(*, run: str, step: str, because: str = "") -> None:
    """An earlier step's model works again, and promoted.json says since when and why."""
    run_dir = Path(run)
    load_cycle(run_dir)
    with locked(run_dir, wait=False):
        before = roll_back(run_dir, step=step, because=because)
        publish(run_dir)
    console.print(
        f"{run_dir}: the model of {step} works now, in place of that of {before}; {run_dir / 'model.pt'} is a copy of it"
    )


def ledger(*, run: str, image: str = "", out: str = "") -> None:
    """Who, which model and which prompts made each mask."""
    show_ledger(Path(run), load_cycle(Path(run)), image=image, out=Path(out) if out else None)


def ablation(*, run: str, training: str = "") -> None:
    """Train on the masks of some stages alone, all from one model, and measure."""
    run_dir = Path(run)
    cfg = load_cycle(run_dir)
    with locked(run_dir, wait=False) as lock:
        ablate(cfg, run_dir, lock, training=training.split() if training else [])


WORDS: Mapping[str, Callable[..., None]] = {"step": step, "rollback": rollback, "ledger": ledger, "ablation": ablation}
