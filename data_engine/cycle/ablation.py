"""The paper's ablation of the data engine (section 7.6) on a finished loop: which stages' masks a model should be trained on.

Every set of masks is trained on from the same model, for the same number of training steps, and evaluated on the same
held-out images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from data_engine.console import console
from data_engine.cycle.overrides import hydra_quote, training_data_overrides
from data_engine.cycle.pipeline import split_shard_folders
from data_engine.cycle.subprocess_runner import ProcessLauncher
from data_engine.cycle_folder import CycleFolder, PromotionRecord, Step, parse_steps
from data_engine.cycle_folder.promotion import read_history
from sam_train.errors import ConfigError

STAGES = ("assisted_manual", "semi_automatic", "fully_automatic")
SETS: Mapping[str, Sequence[str]] = {
    "manual": STAGES[:1],
    "manual_semi_automatic": STAGES[:2],
    "all": STAGES,
    "automatic": STAGES[2:],
}
"""Sets of the figure in the paper's section 7.6: stages 1, 1+2, 1+2+3, and automatic masks only."""
MEASURES = ("miou_at_1", "miou_at_3", "miou_at_5", "oracle_at_1")


def run_ablation(cfg: DictConfig, folder: CycleFolder, lock: IO[str], *, training: Sequence[str]) -> None:
    """Train and evaluate a model for each of SETS, write ablation.json and print it.

    All start from the first model of the loop and use the training config of its last step with the overrides `training`.
    Finished trainings and evaluations are skipped. Raises ConfigError if a stage has no masks yet.
    """
    history = read_history(folder)
    if not history:
        raise ConfigError(f"{folder.path} has no model yet: run its cycle first")
    launcher = ProcessLauncher(folder, lock)
    results = {}
    for name in SETS:
        steps = _steps_of_set(cfg, folder, name, first=history[0])
        _train(cfg, folder, launcher, name, steps, first=history[0], training=training)
        set_folder = folder.ablation(name)
        if not set_folder.evaluation.is_file():
            overrides = [
                f"checkpoint={hydra_quote(set_folder.model)}",
                f"shards={hydra_quote(cfg.corpus.heldout)}",
                f"out={hydra_quote(set_folder.evaluation)}",
            ]
            launcher.start(f"ablation {name}: evaluate", "sam_train.evaluate", *overrides, *cfg.evaluation)
        results[name] = {"steps": [step.name for step in steps], **set_folder.read_evaluation()}
    folder.write_ablation(results)
    console.print(results_table(results))


def _steps_of_set(cfg: DictConfig, folder: CycleFolder, name: str, *, first: PromotionRecord) -> list[Step]:
    """Return the steps whose masks are in the set `name`, without the step that trained the first model."""
    annotated = [s for s in parse_steps(cfg.stages) if s.name != first.step and folder.step(s.name).shards.is_dir()]
    steps = [step for step in annotated if step.stage in SETS[name]]
    if missing := set(SETS[name]) - {step.stage for step in steps}:
        stages = ", ".join(sorted(missing))
        raise ConfigError(f"{folder.path} has no masks of {stages} (after its first model): nothing to compare")
    return steps


def _train(
    cfg: DictConfig,
    folder: CycleFolder,
    launcher: ProcessLauncher,
    name: str,
    steps: Sequence[Step],
    *,
    first: PromotionRecord,
    training: Sequence[str],
) -> None:
    set_folder = folder.ablation(name)
    if set_folder.train_metrics.is_file():
        return
    human, automatic = split_shard_folders(steps, folder)
    overrides = [
        *training_data_overrides(human, automatic, human_mask_weight=cfg.human_mask_weight),
        f"run_dir={hydra_quote(set_folder.train)}",
        f"name={hydra_quote(f'{cfg.name}-ablation-{name}')}",
        f"init_checkpoint={hydra_quote(folder.path / first.checkpoint)}",
    ]
    last_step = parse_steps(cfg.stages)[-1]
    launcher.start(f"ablation {name}: train", "sam_train.train", *cfg.training, *overrides, *last_step.training, *training)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with one row per set of masks."""
    titles = [name.replace("miou_at_", "mIoU@").replace("oracle_at_", "oracle@") for name in MEASURES]
    table = Table("masks of", *titles, box=box.SIMPLE_HEAD)
    for name, measured in results.items():
        table.add_row(name.replace("_", " "), *(f"{measured[key]:.3f}" if key in measured else "" for key in MEASURES))
    return table
