"""A run folder and its cycle: checked, locked, and handed to whatever runs the steps."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.pipeline import Cycle
from data_engine.cycle.slurm_runner import launcher_in_job
from data_engine.cycle.subprocess_runner import CycleRunner, ProcessLauncher
from data_engine.cycle_folder.promotion import check_promotion_measure
from data_engine.cycle_folder.steps import parse_steps
from sam_train.config import build, changed_keys, config_dir, load_stored, save_resolved
from sam_train.errors import ConfigError
from sam_train.shards.maintenance.duplicate_groups import MAX_THRESHOLD

RESUME_KEYS = (
    "corpus", "initial_model", "stages", "images_per_shard", "engine", "training", "evaluation", "promote_by", "min_gain",
)  # fmt: skip
"""What a cycle that goes on must have as it was."""


def run(cfg: DictConfig) -> None:
    """See to every action that is not done yet, then to the report."""
    check(cfg)
    run_dir = Path(cfg.run_dir)
    steps: CycleRunner = build(cfg.runner)
    run_dir.mkdir(parents=True, exist_ok=True)
    if steps.has_queued_jobs(run_dir):
        return
    with lock_run_folder(run_dir) as lock:
        check_same_cycle(cfg, run_dir)
        save_resolved(cfg, run_dir / "config.yaml")
        steps.run(Cycle(cfg, run_dir, ProcessLauncher(run_dir, lock)))


def perform(run_dir: Path, name: str) -> None:
    """One action of a cycle, which a job is there for. Raises ConfigError when the cycle has none of that name."""
    cfg = load_cycle_config(run_dir)
    with lock_run_folder(run_dir) as lock:
        cycle = Cycle(cfg, run_dir, launcher_in_job(run_dir, lock))
        action = next((action for action in cycle.actions() if action.name == name), None)
        if action is None:
            names = ", ".join(action.name for action in cycle.actions())
            raise ConfigError(f"{run_dir} has no action {name!r}: expected one of {names}")
        if not cycle.is_done(action):
            cycle.perform(action)


def load_cycle_config(run_dir: Path) -> DictConfig:
    """The config of a run folder. Raises ConfigError when there is none, or none of a cycle."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} has no config.yaml: give the folder of a cycle, such as runs/quickstart")
    cfg = OmegaConf.create(load_stored(path))
    if not isinstance(cfg, DictConfig) or "stages" not in cfg or "corpus" not in cfg:
        raise ConfigError(f"{path} is not the config of a cycle: give the folder that sam-cycle wrote")
    return cfg


def check_same_cycle(cfg: DictConfig, run_dir: Path) -> None:
    """Raise ConfigError if the folder holds a cycle of another corpus, stages or training."""
    saved = run_dir / "config.yaml"
    if saved.is_file() and (changed := changed_keys(cfg, saved, RESUME_KEYS)):
        what_to_do = "choose another name=..., or remove the folder to begin anew"
        raise ConfigError(f"{run_dir} holds a cycle with another {', '.join(changed)}: {what_to_do}")


def check(cfg: DictConfig) -> None:
    """Raise ConfigError for what would only fail hours later."""
    if not cfg.stages:
        raise ConfigError("a cycle needs stages: try sam-cycle experiment=quickstart")
    if not cfg.corpus.ground_truth or not cfg.corpus.heldout:
        raise ConfigError(
            "a cycle needs corpus.ground_truth=SHARDS, whose masks play the person, and corpus.heldout=SHARDS to judge by"
        )
    check_promotion_measure(cfg.promote_by)
    if not isinstance(cfg.min_gain, (int, float)) or cfg.min_gain < 0:
        raise ConfigError(f"min_gain is {cfg.min_gain!r}, expected 0 or more: a model that is worse is never promoted")
    if not isinstance(cfg.corpus.leak_bits, int) or not 0 <= cfg.corpus.leak_bits <= MAX_THRESHOLD:
        raise ConfigError(f"corpus.leak_bits is {cfg.corpus.leak_bits!r}, expected 0 to {MAX_THRESHOLD}")
    if cfg.initial_model.checkpoint and not Path(cfg.initial_model.checkpoint).is_file():
        raise ConfigError(
            f"initial_model.checkpoint is {cfg.initial_model.checkpoint}: expected a file, model.pt or released weights"
        )
    known = sorted(path.stem for path in (Path(config_dir()) / "stage").glob("*.yaml"))
    for step in parse_steps(cfg.stages):
        if step.stage not in known:
            raise ConfigError(f"entry {step.entry} of stages is {step.stage!r}, expected one of {', '.join(known)}")
