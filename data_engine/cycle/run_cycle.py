"""Run a loop, or one of its actions, in a run folder: check the config, take the lock, and start the runner."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.pipeline import Cycle
from data_engine.cycle.slurm_runner import launcher_in_job
from data_engine.cycle.subprocess_runner import CycleRunner, ProcessLauncher
from data_engine.cycle_folder import CycleFolder, parse_steps
from data_engine.cycle_folder.promotion import check_promotion_measure
from sam_train.config import build, changed_keys, config_dir, save_resolved
from sam_train.errors import CheckpointError, ConfigError
from sam_train.shards.maintenance.duplicate_groups import MAX_THRESHOLD
from sam_train.weights import checkpoint_files

RESUME_KEYS = (
    "corpus", "initial_model", "stages", "images_per_shard", "engine", "training", "evaluation", "promote_by", "min_gain",
)  # fmt: skip
"""Config keys that a resumed loop must not change."""


def run_cycle(cfg: DictConfig) -> None:
    """Execute, or submit, every action that is not done, and write the report.

    Raises ConfigError for an invalid config, or if the run folder holds another loop, and SamTrainError if an action fails.
    """
    check_config(cfg)
    folder = CycleFolder(Path(cfg.run_dir))
    runner: CycleRunner = build(cfg.runner)
    folder.path.mkdir(parents=True, exist_ok=True)
    if runner.has_queued_jobs(folder):
        return
    with lock_run_folder(folder) as lock:
        check_same_cycle(cfg, folder)
        save_resolved(cfg, folder.config)
        runner.run(Cycle(cfg, folder, ProcessLauncher(folder, lock)))


def run_action(folder: CycleFolder, name: str) -> None:
    """Execute the action `name` if it is not done, as a SLURM job does. Raises ConfigError if there is no such action."""
    cfg = load_cycle_config(folder)
    with lock_run_folder(folder) as lock:
        cycle = Cycle(cfg, folder, launcher_in_job(folder, lock))
        actions = {action.name: action for action in cycle.list_actions()}
        if name not in actions:
            raise ConfigError(f"{folder.path} has no action {name!r}: expected one of {', '.join(actions)}")
        if not cycle.is_done(actions[name]):
            cycle.execute(actions[name])


def load_cycle_config(folder: CycleFolder) -> DictConfig:
    """Return the stored config of a run folder. Raises ConfigError if there is none, or if it is not that of a loop."""
    cfg = OmegaConf.create(folder.read_config())
    if "corpus" not in cfg:
        raise ConfigError(f"{folder.config} is not the config of a cycle: give the folder that sam-cycle wrote")
    return cfg


def check_same_cycle(cfg: DictConfig, folder: CycleFolder) -> None:
    """Raise ConfigError if the run folder holds a loop whose RESUME_KEYS differ."""
    if folder.config.is_file() and (changed := changed_keys(cfg, folder.config, RESUME_KEYS)):
        remedy = "choose another name=..., or remove the folder to start from the beginning"
        raise ConfigError(f"{folder.path} holds a cycle with another {', '.join(changed)}: {remedy}")


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError for values that would otherwise fail hours later."""
    if not cfg.stages:
        raise ConfigError("a cycle needs stages: try sam-cycle experiment=quickstart")
    if not cfg.corpus.ground_truth or not cfg.corpus.heldout:
        needed = "corpus.ground_truth=SHARDS with masks for the simulated annotator, and corpus.heldout=SHARDS for evaluation"
        raise ConfigError(f"a cycle needs {needed}")
    check_promotion_measure(cfg.promote_by)
    if not isinstance(cfg.min_gain, (int, float)) or cfg.min_gain < 0:
        raise ConfigError(f"min_gain is {cfg.min_gain!r}, expected 0 or more: a model that is worse is never promoted")
    if not isinstance(cfg.corpus.leak_bits, int) or not 0 <= cfg.corpus.leak_bits <= MAX_THRESHOLD:
        raise ConfigError(f"corpus.leak_bits is {cfg.corpus.leak_bits!r}, expected 0 to {MAX_THRESHOLD}")
    if checkpoint := cfg.initial_model.checkpoint:
        try:
            checkpoint_files(checkpoint)
        except CheckpointError as error:
            raise ConfigError(f"initial_model.checkpoint is {checkpoint}: {error}") from error
    stages = sorted(path.stem for path in (Path(config_dir()) / "stage").glob("*.yaml"))
    for step in parse_steps(cfg.stages):
        if step.stage not in stages:
            raise ConfigError(f"entry {step.entry} of stages is {step.stage!r}, expected one of {', '.join(stages)}")
