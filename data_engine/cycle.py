"""Turn the engine: annotate, train, evaluate, promote, and again with the better model.

    sam-cycle experiment=quickstart

Each step is a process of its own that leaves complete files or none, so the cycle can be killed at any moment and started
again: what is done is passed over, what was begun goes on. It knows nothing but files:

    runs/<name>/
      config.yaml
      corpus/                      train/ and heldout/, when the corpus is made here
      1_assisted_manual/           shards/, train/, evaluation.json
      2_...
      promoted.json                the model that works now, and all verdicts
      model.pt                     a copy of it
      report.json, report.html
"""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import hydra
from omegaconf import DictConfig
from rich.console import Console

from data_engine.promote import check_measure, is_judged, judge, promoted, publish
from sam_train.config import changed_keys, config_dir, save_resolved
from sam_train.errors import ConfigError, SamTrainError, exit_with_message

console = Console(highlight=False)

DECISIVE = ("corpus", "stages", "images_per_shard", "training", "evaluation", "promote_by")
"""What a cycle that goes on must have as it was."""


@hydra.main(config_path=config_dir(), config_name="cycle", version_base="1.3")
@exit_with_message
def main(cfg: DictConfig) -> None:
    """Console script `sam-cycle`."""
    run(cfg)


def run(cfg: DictConfig) -> None:
    """Run every step that is not done yet, then write the report."""
    check(cfg)
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir) as lock:
        refuse_another(cfg, run_dir)
        save_resolved(cfg, run_dir / "config.yaml")
        cycle = Cycle(cfg, run_dir, lock)
        cycle.make_corpus()
        for number, stage in enumerate(cfg.stages, start=1):
            cycle.turn(f"{number}_{stage.stage}", stage)
        publish(run_dir)
        cycle.start("report", "data_engine.report", "--run", str(run_dir))


def refuse_another(cfg: DictConfig, run_dir: Path) -> None:
    """Raise ConfigError if the folder holds a cycle of another corpus, stages or training."""
    saved = run_dir / "config.yaml"
    if saved.is_file() and (changed := changed_keys(cfg, saved, DECISIVE)):
        what_to_do = "choose another name=..., or remove the folder to begin anew"
        raise ConfigError(f"{run_dir} holds a cycle with another {', '.join(changed)}: {what_to_do}")


def check(cfg: DictConfig) -> None:
    """Raise ConfigError for what would only fail hours later."""
    if not cfg.stages:
        raise ConfigError("a cycle needs stages: try sam-cycle experiment=quickstart")
    if not cfg.corpus.truth or not cfg.corpus.heldout:
        raise ConfigError("a cycle needs corpus.truth=SHARDS, whose masks play the person, and corpus.heldout=SHARDS to judge by")
    check_measure(cfg.promote_by)
    known = sorted(path.stem for path in (Path(config_dir()) / "stage").glob("*.yaml"))
    for number, stage in enumerate(cfg.stages, start=1):
        if missing := [key for key in ("stage", "first_image", "num_images") if key not in stage]:
            raise ConfigError(f"stage {number} lacks {', '.join(missing)}: expected {{stage, first_image, num_images}}")
        if stage.stage not in known:
            raise ConfigError(f"stage {number} is {stage.stage!r}, expected one of {', '.join(known)}")


class Cycle:
    """The steps over one run folder."""

    def __init__(self, cfg: DictConfig, run_dir: Path, lock: IO[str]) -> None:
        self.cfg, self.run_dir, self.lock = cfg, run_dir, lock

    def make_corpus(self) -> None:
        """Compose the embedded corpus, unless the config names one."""
        corpus = self.cfg.corpus
        if corpus.synthetic is None:
            return
        made = corpus.synthetic
        for folder, num_images, seed in (
            (corpus.truth, made.num_images, made.seed),
            (corpus.heldout, made.num_heldout, made.seed + 1),
        ):
            arguments = {"out": folder, "num-images": num_images, "seed": seed, "longest-side": made.longest_side}
            options = [part for k, v in arguments.items() for part in (f"--{k}", str(v))]
            self.start(f"corpus: {folder}", "sam_train.data.synthetic", *options)

    def turn(self, step: str, stage: DictConfig) -> None:
        """Annotate, train on all shards so far, evaluate, promote if better."""
        folder = self.run_dir / step
        current = promoted(self.run_dir)
        if is_judged(self.run_dir, step):
            console.print(f"[dim]{step}: done")
            return
        shards = folder / "shards"
        if not (shards / "ledger.json").is_file():
            self.start(f"{step}: annotate", "data_engine.run", *self._engine_overrides(stage, current, shards))
        candidate = folder / "train" / "model.pt"
        if not (folder / "train" / "metrics.json").is_file():
            self.start(f"{step}: train", "sam_train.train", *self._train_overrides(step, stage, current))
        evaluation = folder / "evaluation.json"
        if not evaluation.is_file():
            overrides = [
                f"checkpoint={quoted(candidate)}",
                f"shards={quoted(self.cfg.corpus.heldout)}",
                f"out={quoted(evaluation)}",
            ]
            self.start(f"{step}: evaluate", "sam_train.evaluate", *overrides, *self.cfg.evaluation)
        measured = json.loads(evaluation.read_bytes())
        better = judge(self.run_dir, step=step, candidate=candidate, evaluation=measured, measure=self.cfg.promote_by)
        verdict = "promoted" if better else "not better: the model before it stays"
        console.print(f"{step}: {self.cfg.promote_by} {measured[self.cfg.promote_by]:.3f}, {verdict}")

    def start(self, title: str, module: str, *arguments: str) -> None:
        """Run a module as a process and wait. Raises SamTrainError when it fails; its own message stands above."""
        console.rule(title, align="left", style="dim")
        # A child keeps the lock: killed alone, the cycle leaves a worker that a new cycle must wait for.
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False, pass_fds=[self.lock.fileno()])
        if done.returncode < 0:
            killed = f"{title} was killed by signal {-done.returncode} (9 is what a system out of memory sends)"
            raise SamTrainError(f"{killed}; start the same command again to go on")
        if done.returncode:
            raise SamTrainError(f"{title} ended with exit code {done.returncode}; mend what it says and start again")

    def _engine_overrides(self, stage: DictConfig, current: Path | None, shards: Path) -> list[str]:
        overrides = [f"stage={stage.stage}", f"source={quoted(self.cfg.corpus.truth)}", f"out={quoted(shards)}"]
        overrides += [f"first_image={stage.first_image}", f"num_images={stage.num_images}"]
        overrides += [f"images_per_shard={self.cfg.images_per_shard}"]
        overrides += [f"checkpoint={quoted(current)}"] if current else []
        return overrides + list(stage.get("engine") or [])

    def _train_overrides(self, step: str, stage: DictConfig, current: Path | None) -> list[str]:
        folders = [str(self.run_dir / name / "shards") for name in self._steps_until(step)]
        overrides = [f"data.shards={quoted(folders)}", f"run_dir={quoted(self.run_dir / step / 'train')}"]
        overrides += [f"name={quoted(f'{self.cfg.name}-{step}')}"]
        overrides += [f"init_checkpoint={quoted(current)}"] if current else []
        return list(self.cfg.training) + overrides + list(stage.get("training") or [])

    def _steps_until(self, step: str) -> Sequence[str]:
        names = [f"{number}_{stage.stage}" for number, stage in enumerate(self.cfg.stages, start=1)]
        return names[: names.index(step) + 1]


def quoted(value: str | Path | Sequence[str]) -> str:
    """The value of an override. In Hydra's grammar commas, brackets, spaces and equal signs of a path have a meaning."""
    if not isinstance(value, (str, Path)):
        return f"[{','.join(quoted(item) for item in value)}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"  # a backslash counts only before a quote


@contextmanager
def locked(run_dir: Path) -> Iterator[IO[str]]:
    """Hold the run folder alone; waits for what a killed cycle left running."""
    with (run_dir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"{run_dir} is in use by another cycle or by what a killed one left running: waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


if __name__ == "__main__":
    main()
