"""What each step of a cycle is told, and when it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig

from data_engine.console import console
from data_engine.cycle.budget import budget_exceeded_reason
from data_engine.cycle.corpus import check_corpus, is_corpus_checked, read_corpus
from data_engine.cycle.overrides import hydra_quote, training_data_overrides
from data_engine.cycle_folder.promotion import export_promoted_model, has_decision, promote_if_better, promoted_checkpoint
from data_engine.cycle_folder.steps import START_STEP, Step, parse_steps
from sam_train.files import atomic_write, atomic_write_bytes


@runtime_checkable  # so that the type checks of the tests can ask
class Launcher(Protocol):
    """Starts a module of ours as a process, waits, and keeps the clock."""

    clock: Any

    def start(self, title: str, module: str, *arguments: str) -> None:
        """Raises SamTrainError when it fails."""
        ...


@dataclass(frozen=True, slots=True)
class Action:
    """A process of a cycle."""

    what: str
    """corpus, annotate, train, evaluate or report."""
    folder: str = ""
    """Of the step that it belongs to."""
    step: Step | None = None

    @property
    def name(self) -> str:
        """`2_assisted_manual/train`, `report`."""
        return f"{self.folder}/{self.what}" if self.folder else self.what


class Cycle:
    """The actions over one run folder. Each leaves a file by which it is known to be done."""

    def __init__(self, cfg: DictConfig, run_dir: Path, starter: Launcher) -> None:
        self.cfg, self.run_dir, self.starter = cfg, run_dir, starter
        self.steps = parse_steps(cfg.stages)

    def actions(self) -> list[Action]:
        """All, in their order."""
        start = [Action("train", START_STEP)] if self.cfg.initial_model.shards else []
        start += [Action("evaluate", START_STEP)] if self.cfg.initial_model.shards or self.cfg.initial_model.checkpoint else []
        turns = [Action(what, step.name, step) for step in self.steps for what in ("annotate", "train", "evaluate")]
        return [Action("corpus"), *start, *turns, Action("report")]

    def is_done(self, action: Action) -> bool:
        """Whether its files are there. The report is written again each time."""
        if action.what == "corpus":
            return is_corpus_checked(self.cfg, self.run_dir)
        if action.what == "report":
            return False
        folder = self.run_dir / action.folder
        if has_decision(self.run_dir, action.folder) or (folder / "left_out.json").is_file():
            return True
        mark = {"annotate": "shards/ledger.json", "train": "train/metrics.json"}.get(action.what)
        return mark is not None and (folder / mark).is_file()

    def perform(self, action: Action) -> None:
        """Do it. Raises SamTrainError; whatever is whole by then stays."""
        if action.what == "corpus":
            self._corpus()
        elif action.what == "report":
            export_promoted_model(self.run_dir)
            self.starter.start("report", "data_engine.report", f"run={self.run_dir}")
        elif action.what == "evaluate":
            self._evaluate(action)
        elif action.what == "train":
            self.starter.start(f"{action.folder}: train", "sam_train.train", *self._train_overrides(action))
        elif action.step is not None:
            self._annotate(action.step)

    def _corpus(self) -> None:
        corpus = self.cfg.corpus
        if (made := corpus.synthetic) is not None:
            for folder, num_images, seed in (
                (corpus.ground_truth, made.num_images, made.seed),
                (corpus.heldout, made.num_heldout, made.seed + 1),
            ):
                arguments = {"out": folder, "num-images": num_images, "seed": seed, "longest-side": made.longest_side}
                options = [part for k, v in arguments.items() for part in (f"--{k}", str(v))]
                self.starter.start(f"corpus: {folder}", "sam_train.data.synthetic", *options)
        check_corpus(self.cfg, self.run_dir, self.steps, console.print)

    def _annotate(self, step: Step) -> None:
        """Nothing when its stage has had enough. What was begun goes on all the same."""
        folder = self.run_dir / step.name
        if not (folder / "shards").exists() and (why := self._why_left_out(step)):
            atomic_write_bytes(folder / "left_out.json", (json.dumps({"why": why}) + "\n").encode())
            console.print(f"{step.name}: left out, {why}")
            return
        current = promoted_checkpoint(self.run_dir)
        overrides = [
            f"stage={step.stage}",
            f"source={hydra_quote(self.cfg.corpus.ground_truth)}",
            f"out={hydra_quote(folder / 'shards')}",
        ]
        overrides += [f"first_image={self.first_image(step)}"]
        overrides += [f"num_images={step.num_images}"] if step.num_images else []
        overrides += [f"images_per_shard={self.cfg.images_per_shard}"]
        overrides += [f"checkpoint={hydra_quote(current)}"] if current else []
        self.starter.start(f"{step.name}: annotate", "data_engine.engine", *overrides, *self.cfg.engine, *step.engine)

    def _why_left_out(self, step: Step) -> str:
        return budget_exceeded_reason(self.run_dir, step, self.steps, self.starter.clock.times()) if step.budget else ""

    def _train_overrides(self, action: Action) -> list[str]:
        current, folder = promoted_checkpoint(self.run_dir), self.run_dir / action.folder / "train"
        if action.step is None and self.cfg.initial_model.checkpoint:
            current = Path(self.cfg.initial_model.checkpoint)
        overrides = [*self.masks_for(action.step), f"run_dir={hydra_quote(folder)}"]
        overrides += [f"name={hydra_quote(f'{self.cfg.name}-{action.folder}')}"]
        overrides += [f"init_checkpoint={hydra_quote(current)}"] if current else []
        own = action.step.training if action.step else self.cfg.initial_model.training
        return [*self.cfg.training, *overrides, *own]

    def masks_for(self, step: Step | None) -> list[str]:
        """What the training of `step`, or that of the model to start with, sees: overrides."""
        start = self.cfg.initial_model.shards or []
        start = [start] if isinstance(start, str) else [str(path) for path in start]
        until = self.steps[: self.steps.index(step) + 1] if step else ()
        written = [other for other in until if not self._is_left_out(other)]
        if step and step.train_on != "all":
            start, written = [], written[-1:] if step.train_on == "new" else written
        by_people, by_models = split_shard_folders(written, self.run_dir)
        return training_data_overrides([*start, *by_people], by_models, human_mask_weight=self.cfg.human_mask_weight)

    def first_image(self, step: Step) -> int:
        """Where the step's pictures begin: behind those of the steps before it that were not left out."""
        if step.first_image is not None:
            return step.first_image
        end = 0
        for other in self.steps[: self.steps.index(step)]:
            if not self._is_left_out(other):
                last = None if other.num_images is None else self.first_image(other) + other.num_images
                end = max(end, read_corpus(self.run_dir)["num_images"] if last is None else last)
        return end

    def _is_left_out(self, step: Step) -> bool:
        return (self.run_dir / step.name / "left_out.json").is_file()

    def _evaluate(self, action: Action) -> None:
        """Measure the candidate on the held-out pictures, unless that was done, and promote it if it is better."""
        folder = self.run_dir / action.folder
        candidate, evaluation = self._candidate(action), folder / "evaluation.json"
        if not evaluation.is_file():
            overrides = [
                f"checkpoint={hydra_quote(candidate)}",
                f"shards={hydra_quote(self.cfg.corpus.heldout)}",
                f"out={hydra_quote(evaluation)}",
            ]
            self.starter.start(f"{action.folder}: evaluate", "sam_train.evaluate", *overrides, *self.cfg.evaluation)
        measured, measure = json.loads(evaluation.read_bytes()), self.cfg.promote_by
        asked = {"step": action.folder, "candidate": candidate, "measure": measure, "min_gain": self.cfg.min_gain}
        better = promote_if_better(self.run_dir, evaluation=measured, **asked)
        verdict = "promoted" if better else "not better: the model before it stays"
        console.print(f"{action.folder}: {measure} {measured[measure]:.3f}, {verdict}")

    def _candidate(self, action: Action) -> Path:
        """The model to judge. One that came from elsewhere is copied: a run folder holds all that it promotes."""
        if action.step is not None or self.cfg.initial_model.shards:
            return self.run_dir / action.folder / "train" / "model.pt"
        given = Path(self.cfg.initial_model.checkpoint)
        copy = self.run_dir / action.folder / given.name
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(copy) as target, given.open("rb") as original:
                shutil.copyfileobj(original, target)
        return copy


def split_shard_folders(steps: Sequence[Step], run_dir: Path) -> tuple[list[Path], list[Path]]:
    """The folders of shards of steps, in their order: what people had a hand in, and what models made alone."""
    by_people: list[Path] = []
    by_models: list[Path] = []
    for step in steps:
        (by_models if step.stage == "fully_automatic" else by_people).append(run_dir / step.name / "shards")
    return by_people, by_models
