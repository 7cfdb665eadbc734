"""The actions of a data-engine loop: the overrides of each, and how a finished one is recognised."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig

from data_engine.console import console
from data_engine.cycle.budget import budget_exceeded_reason
from data_engine.cycle.corpus import check_corpus, is_corpus_checked
from data_engine.cycle.overrides import hydra_quote, training_data_overrides
from data_engine.cycle_folder import START_STEP, CycleFolder, Step, parse_steps
from data_engine.cycle_folder.promotion import export_promoted_model, has_decision, promote_if_better, promoted_checkpoint
from sam_train.files import atomic_write
from sam_train.weights import checkpoint_files, resolve_checkpoint


@runtime_checkable  # the type checks of the tests need it
class Launcher(Protocol):
    """Starts a module as a process, waits for its end, and records its run time."""

    def start(self, title: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments`. Raises SamTrainError if it fails."""
        ...


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a loop, which is at most one process."""

    kind: str
    """corpus, annotate, train, evaluate, final or report."""
    step_name: str = ""
    """Name of the step that it belongs to; empty for corpus, final and report."""
    step: Step | None = None
    """The step, None also for START_STEP."""

    @property
    def name(self) -> str:
        """Name in commands and messages, such as `2_assisted_manual/train` or `report`."""
        return f"{self.step_name}/{self.kind}" if self.step_name else self.kind


class Cycle:
    """The actions of the loop in one run folder. Each writes a file by which it is recognised as done."""

    def __init__(self, cfg: DictConfig, folder: CycleFolder, launcher: Launcher) -> None:
        self.cfg, self.folder, self.launcher = cfg, folder, launcher
        self.steps = parse_steps(cfg.stages)

    def list_actions(self) -> list[Action]:
        """Return all actions in their order."""
        initial = [Action("train", START_STEP)] if self.cfg.initial_model.shards else []
        if self.cfg.initial_model.shards or self.cfg.initial_model.checkpoint:
            initial.append(Action("evaluate", START_STEP))
        actions = [Action(kind, step.name, step) for step in self.steps for kind in ("annotate", "train", "evaluate")]
        final = [Action("final")] if self.cfg.corpus.get("final") else []
        return [Action("corpus"), *initial, *actions, *final, Action("report")]

    def is_done(self, action: Action) -> bool:
        """Return whether the files of the action exist. The report is never done: it is written again by every run."""
        if action.kind == "corpus":
            return is_corpus_checked(self.cfg, self.folder)
        if action.kind == "report":
            return False
        if action.kind == "final":
            return self.folder.final_evaluation("promoted").is_file()
        step = self.folder.step(action.step_name)
        if has_decision(self.folder, action.step_name) or step.is_skipped():
            return True
        last_file = {"annotate": step.ledger, "train": step.train_metrics}.get(action.kind)
        return last_file is not None and last_file.is_file()

    def execute(self, action: Action) -> None:
        """Execute one action. Raises SamTrainError if it fails; its finished files stay."""
        if action.kind == "corpus":
            self._prepare_corpus()
        elif action.kind == "report":
            export_promoted_model(self.folder)
            self.launcher.start("report", "data_engine.report", f"run={self.folder.path}")
        elif action.kind == "evaluate":
            self._evaluate(action)
        elif action.kind == "final":
            self._evaluate_finally()
        elif action.kind == "train":
            self.launcher.start(f"{action.step_name}: train", "sam_train.train", *self._train_overrides(action))
        elif action.step is not None:
            self._annotate(action.step)

    def _prepare_corpus(self) -> None:
        corpus = self.cfg.corpus
        if (synthetic := corpus.synthetic) is not None:
            parts = [
                (corpus.ground_truth, synthetic.num_images, synthetic.seed),
                (corpus.heldout, synthetic.num_heldout, synthetic.seed + 1),
            ]
            parts += [(corpus.final, synthetic.num_final, synthetic.seed + 2)] if corpus.get("final") else []
            for shards, num_images, seed in parts:
                arguments = {"out": shards, "num-images": num_images, "seed": seed, "longest-side": synthetic.longest_side}
                options = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
                self.launcher.start(f"corpus: {shards}", "sam_train.data.synthetic", *options)
        check_corpus(self.cfg, self.folder, self.steps, console.print)

    def _annotate(self, step: Step) -> None:
        """Annotate, or skip the step if its budget is spent. A step that has begun is completed in any case."""
        step_folder = self.folder.step(step.name)
        reason = budget_exceeded_reason(self.folder, step, self.steps) if step.budget else ""
        if reason and not step_folder.shards.exists():
            step_folder.write_skip_reason(reason)
            console.print(f"{step.name}: skipped, {reason}")
            return
        model = promoted_checkpoint(self.folder)
        overrides = [
            f"stage={step.stage}",
            f"source={hydra_quote(self.cfg.corpus.ground_truth)}",
            f"out={hydra_quote(step_folder.shards)}",
            f"first_image={self.first_image(step)}",
        ]
        overrides += [f"num_images={step.num_images}"] if step.num_images else []
        overrides += [f"images_per_shard={self.cfg.images_per_shard}"]
        overrides += [f"checkpoint={hydra_quote(model)}"] if model else []
        self.launcher.start(f"{step.name}: annotate", "data_engine.engine", *overrides, *self.cfg.engine, *step.engine)

    def _train_overrides(self, action: Action) -> list[str]:
        model: str | Path | None = promoted_checkpoint(self.folder)
        if action.step is None and self.cfg.initial_model.checkpoint:
            model = self.cfg.initial_model.checkpoint
        overrides = [
            *self.training_data(action.step),
            f"run_dir={hydra_quote(self.folder.step(action.step_name).train)}",
            f"name={hydra_quote(f'{self.cfg.name}-{action.step_name}')}",
        ]
        overrides += [f"init_checkpoint={hydra_quote(model)}"] if model else []
        step_overrides = action.step.training if action.step else self.cfg.initial_model.training
        return [*self.cfg.training, *overrides, *step_overrides]

    def training_data(self, step: Step | None) -> list[str]:
        """Return the overrides for the training data of `step`, or of the initial model if it is None."""
        initial = self.cfg.initial_model.shards or []
        initial = [initial] if isinstance(initial, str) else [str(path) for path in initial]
        steps_so_far = self.steps[: self.steps.index(step) + 1] if step else ()
        annotated = [other for other in steps_so_far if not self._is_skipped(other)]
        if step and step.train_on != "all":
            initial, annotated = [], annotated[-1:] if step.train_on == "new" else annotated
        human, automatic = split_shard_folders(annotated, self.folder)
        return training_data_overrides([*initial, *human], automatic, human_mask_weight=self.cfg.human_mask_weight)

    def first_image(self, step: Step) -> int:
        """Return the index of the first image of `step`: after those of the steps before it that were not skipped."""
        if step.first_image is not None:
            return step.first_image
        end = 0
        for other in self.steps[: self.steps.index(step)]:
            if not self._is_skipped(other):
                end = max(end, self._end_of_images(other))
        return end

    def _end_of_images(self, step: Step) -> int:
        if step.num_images is not None:
            return self.first_image(step) + step.num_images
        corpus = self.folder.read_corpus()
        assert corpus is not None, "the corpus is checked before the first step"
        return int(corpus["num_images"])

    def _is_skipped(self, step: Step) -> bool:
        return self.folder.step(step.name).is_skipped()

    def _evaluate(self, action: Action) -> None:
        """Measure the candidate on the held-out images, unless that is done, and promote it if it is better."""
        step_folder, candidate = self.folder.step(action.step_name), self._candidate(action)
        if not step_folder.evaluation.is_file():
            self._start_evaluation(f"{action.step_name}: evaluate", candidate, self.cfg.corpus.heldout, step_folder.evaluation)
        evaluation, measure = step_folder.read_evaluation(), self.cfg.promote_by
        better = promote_if_better(
            self.folder,
            step=action.step_name,
            candidate=candidate,
            evaluation=evaluation,
            measure=measure,
            min_gain=self.cfg.min_gain,
        )
        decision = "promoted" if better else "not better, the promoted model stays"
        console.print(f"{action.step_name}: {measure} {evaluation[measure]:.3f}, {decision}")

    def _final_models(self) -> dict[str, Path]:
        """Return the models that are measured on the final shards: the promoted one, and the initial one if it is another."""
        promoted = promoted_checkpoint(self.folder)
        models = {"promoted": promoted} if promoted else {}
        if self.cfg.initial_model.shards or self.cfg.initial_model.checkpoint:
            initial = self._candidate(Action("evaluate", START_STEP))
            models = models if initial == promoted else {"start": initial, **models}
        return models

    def _evaluate_finally(self) -> None:
        for model, checkpoint in self._final_models().items():
            out = self.folder.final_evaluation(model)
            if not out.is_file():
                out.parent.mkdir(parents=True, exist_ok=True)
                self._start_evaluation(f"final: {model}", checkpoint, self.cfg.corpus.final, out)
        for model, means in self.folder.read_final_evaluations().items():
            console.print(f"final shards, {model} model: {self.cfg.promote_by} {means[self.cfg.promote_by]:.3f}")

    def _start_evaluation(self, title: str, checkpoint: Path, shards: Any, out: Path) -> None:
        files = {"checkpoint": checkpoint, "shards": shards, "out": out}
        overrides = [f"{key}={hydra_quote(value)}" for key, value in files.items()]
        self.launcher.start(title, "sam_train.evaluate", *overrides, *self.cfg.evaluation)

    def _candidate(self, action: Action) -> Path:
        """Return the model to evaluate. `initial_model.checkpoint` is copied, so that the run folder holds all its models."""
        if action.step is not None or self.cfg.initial_model.shards:
            return self.folder.step(action.step_name).model
        return copy_checkpoint(self.cfg.initial_model.checkpoint, self.folder.step(action.step_name).path)


def copy_checkpoint(checkpoint: str, folder: Path) -> Path:
    """Copy a checkpoint into a folder, unless that is done, and return the copy: the file itself, or model.pt for other forms.

    Raises CheckpointError if there is no such checkpoint, or if it is not a model.
    """
    files = checkpoint_files(checkpoint)
    if len(files) == 1 and files[0].suffix in (".pt", ".pth", ".safetensors") and resolve_checkpoint(checkpoint).is_file():
        copy = folder / files[0].name
        if not copy.is_file():
            with atomic_write(copy) as target, files[0].open("rb") as original:
                shutil.copyfileobj(original, target)
        return copy
    copy = folder / "model.pt"
    if not copy.is_file():
        from sam_train.checkpoint import build_model, checkpoint_hash, read_checkpoint, save_checkpoint  # imports torch

        content = read_checkpoint(checkpoint)
        provenance = {**content.provenance, "copied_from": checkpoint_hash(checkpoint)}
        save_checkpoint(copy, build_model(content, origin=checkpoint), content.config, provenance)
    return copy


def split_shard_folders(steps: Sequence[Step], folder: CycleFolder) -> tuple[list[Path], list[Path]]:
    """Return the shard folders of `steps`, in their order: those that annotators worked on, and those of stage three."""
    human: list[Path] = []
    automatic: list[Path] = []
    for step in steps:
        (automatic if step.stage == "fully_automatic" else human).append(folder.step(step.name).shards)
    return human, automatic
