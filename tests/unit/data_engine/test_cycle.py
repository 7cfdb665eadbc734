"""The order of the steps, what each is told, and that what is done is passed over. No process is started here; the walk in
tests/integration starts them."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import data_engine.cycle
from data_engine.cycle import Cycle, locked, quoted, refuse_another, run
from sam_train.config import config_dir, save_resolved
from sam_train.errors import ConfigError, SamTrainError

SCORES = {"1_assisted_manual": 0.5, "2_semi_automatic": 0.4, "3_fully_automatic": 0.6}
STAGES = [
    {"stage": step[2:], "first_image": 10 * i, "num_images": 10, "engine": [f"threads={i + 1}"], "training": [f"seed={i + 5}"]}
    for i, step in enumerate(SCORES)
]


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        wanted = [f"run_dir={tmp_path}/run", "corpus.truth=TRUTH", "corpus.heldout=HELDOUT", "images_per_shard=7"]
        cfg = compose("cycle", overrides=wanted)
    cfg.stages, cfg.training, cfg.evaluation = STAGES, ["threads=1"], ["threads=2"]
    return cfg


class Steps:
    """Stands in for the processes: writes the files that mark a step as done, and may fail before that."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.started, self.fail_at = run_dir, [], ""
        self.arguments: dict[str, list[str]] = {}

    def start(self, title: str, module: str, *arguments: str) -> None:
        self.started.append(title)
        self.arguments[title] = list(arguments)
        if title == self.fail_at:
            raise SamTrainError(f"{title} ended with exit code 1")
        step, _, what = title.partition(": ")
        name = {"annotate": "shards/ledger.json", "train": "train/metrics.json", "evaluate": "evaluation.json"}.get(what)
        if name is None:
            return
        path = self.run_dir / step / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"miou_at_1": SCORES[step]}))
        if what == "train":
            (path.parent / "model.pt").write_text(step)


@pytest.fixture
def steps(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> Steps:
    fake = Steps(Path(config.run_dir))
    monkeypatch.setattr(Cycle, "start", lambda cycle, *arguments: fake.start(*arguments))
    return fake


ALL = [f"{step}: {what}" for step in SCORES for what in ("annotate", "train", "evaluate")] + ["report"]


def test_order_and_history(config: DictConfig, steps: Steps) -> None:
    run(config)
    assert steps.started == ALL
    history = json.loads((steps.run_dir / "promoted.json").read_bytes())["history"]
    assert [(entry["step"], entry["promoted"]) for entry in history] == list(zip(SCORES, [True, False, True], strict=True))


def test_each_step_is_told_what_stands_before_it(config: DictConfig, steps: Steps) -> None:
    run(config)
    run_dir, first = steps.run_dir, "1_assisted_manual/train/model.pt"
    assert steps.arguments["1_assisted_manual: annotate"] == [
        "stage=assisted_manual",
        "source=TRUTH",
        f"out={run_dir}/1_assisted_manual/shards",
        "first_image=0",
        "num_images=10",
        "images_per_shard=7",
        "threads=1",
    ]
    assert f"checkpoint={run_dir}/{first}" in steps.arguments["2_semi_automatic: annotate"]
    # the second model was not better, so the third stage works with the first
    assert f"checkpoint={run_dir}/{first}" in steps.arguments["3_fully_automatic: annotate"]
    training = steps.arguments["3_fully_automatic: train"]
    shards = ",".join(f"{run_dir}/{step}/shards" for step in SCORES)
    assert training[0] == "threads=1"
    assert training[-1] == "seed=7"
    assert {f"data.shards=[{shards}]", f"run_dir={run_dir}/3_fully_automatic/train", f"init_checkpoint={run_dir}/{first}"} < set(
        training
    )
    assert not [a for a in steps.arguments["1_assisted_manual: train"] if a.startswith("init_checkpoint")]
    assert steps.arguments["2_semi_automatic: evaluate"] == [
        f"checkpoint={run_dir}/2_semi_automatic/train/model.pt",
        "shards=HELDOUT",
        f"out={run_dir}/2_semi_automatic/evaluation.json",
        "threads=2",
    ]


@pytest.mark.parametrize("fail_at", ALL)
def test_started_again_it_goes_on_where_it_failed(config: DictConfig, steps: Steps, fail_at: str) -> None:
    steps.fail_at = fail_at
    with pytest.raises(SamTrainError, match="exit code 1"):
        run(config)
    assert steps.started == ALL[: ALL.index(fail_at) + 1]
    steps.started, steps.fail_at = [], ""
    run(config)
    assert steps.started == ALL[ALL.index(fail_at) :]


def test_finished_cycle_only_writes_its_report_again(config: DictConfig, steps: Steps) -> None:
    run(config)
    before = (steps.run_dir / "promoted.json").read_bytes()
    steps.started = []
    run(config)
    assert steps.started == ["report"]
    assert (steps.run_dir / "promoted.json").read_bytes() == before


def test_corpus_is_composed_when_asked(config: DictConfig, steps: Steps) -> None:
    config.corpus.synthetic = {"num_images": 8, "num_heldout": 4, "seed": 3, "longest_side": 128}
    run(config)
    assert steps.started[:2] == ["corpus: TRUTH", "corpus: HELDOUT"]
    assert steps.arguments["corpus: HELDOUT"] == [
        "--out", "HELDOUT", "--num-images", "4", "--seed", "4", "--longest-side", "128"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("returncode", "message"), [(3, "ended with exit code 3; mend what it says"), (-9, "killed by signal 9.*to go on")]
)
def test_step_that_fails(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int, message: str
) -> None:
    done: Callable[..., object] = lambda command, **_: subprocess.CompletedProcess(command, returncode)  # noqa: E731
    monkeypatch.setattr(subprocess, "run", done)
    with locked(tmp_path) as lock, pytest.raises(SamTrainError, match=message):
        Cycle(config, tmp_path, lock).start("title", "module")


def test_child_keeps_the_lock(config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed cycle leaves running is a child that still holds the lock."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(command: list[str], *, check: bool, pass_fds: list[int]) -> subprocess.CompletedProcess[bytes]:
        sleep = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        started.append(subprocess.Popen(sleep, stdin=subprocess.PIPE, pass_fds=pass_fds))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", begin)
    with locked(tmp_path) as lock:
        Cycle(config, tmp_path, lock).start("title", "module")
    with (tmp_path / ".lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started[0].communicate()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "path", ["runs/a", "/a b/c", "a=b", "a,b(c)[d]{e}", "it's", "back\\slash", "back\\'both", "ends\\", "ü", "x:y", "null", "$a"]
)
def test_paths_pass_through_the_grammar_of_overrides(path: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("engine", overrides=[f"out={quoted(Path(path) / 'x')}", f"source={quoted([path + '/x', 'b'])}"])
    assert cfg.out == f"{path}/x"
    assert list(cfg.source) == [f"{path}/x", "b"]


def test_measure_that_is_none_is_named_before_the_first_step(config: DictConfig, steps: Steps) -> None:
    config.promote_by = "miou_at_2"
    with pytest.raises(ConfigError, match="promote_by is 'miou_at_2', expected one of miou_at_1, miou_at_3, miou_at_5, oracle"):
        run(config)
    assert steps.started == []
    assert not steps.run_dir.exists()


def test_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def say(text: str) -> None:
            said.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(data_engine.cycle.console, "print", say)
        with locked(tmp_path):
            assert "waiting for it to end" in said[0]


def test_another_cycle_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"corpus": {"truth": "a"}, "stages": [1], "name": "x"})
    refuse_another(cfg, tmp_path)  # nothing there yet
    save_resolved(cfg, tmp_path / "config.yaml")
    refuse_another(OmegaConf.merge(cfg, {"name": "y"}), tmp_path)
    with pytest.raises(ConfigError, match=r"another corpus.*remove the folder"):
        refuse_another(OmegaConf.merge(cfg, {"corpus": {"truth": "b"}}), tmp_path)
