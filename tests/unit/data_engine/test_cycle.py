"""The order of the steps, what each is told, that what is done is passed over, and what ends a stage. No process is started
here but in the tests of the clock and the lock; the walk in tests/integration starts them."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import data_engine.cycle.lock
from data_engine.commands import cycle as main
from data_engine.cycle.lock import lock_run_folder
from data_engine.cycle.overrides import hydra_quote
from data_engine.cycle.run_cycle import check_same_cycle, run
from data_engine.cycle.subprocess_runner import ProcessLauncher, ProcessTimes
from sam_train.config import config_dir, save_resolved
from sam_train.errors import ConfigError, SamTrainError
from sam_train.records import ImageRecord
from sam_train.shards import encode_jpeg, write_shard

SCORES = {"1_assisted_manual": 0.5, "2_semi_automatic": 0.4, "3_fully_automatic": 0.6}
STAGES = [
    {"stage": step[2:], "first_image": 4 * i, "num_images": 4, "engine": [f"threads={i + 1}"], "training": [f"seed={i + 5}"]}
    for i, step in enumerate(SCORES)
]
NUM_IMAGES = 12


def sample(index: int, *, quality: int = 95) -> tuple[ImageRecord, bytes]:
    """A picture that looks like no other one: blocks of chance."""
    blocks = np.random.default_rng(index).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return make_sample(index)[0], encode_jpeg(blocks.repeat(8, 0).repeat(8, 1), quality=quality)


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    write_shard(tmp_path / "truth" / "sa_000000.tar", [sample(index) for index in range(NUM_IMAGES)])
    write_shard(tmp_path / "heldout" / "sa_000000.tar", [sample(index) for index in range(100, 103)])
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        folders = [f"corpus.ground_truth={tmp_path}/truth", f"corpus.heldout={tmp_path}/heldout"]
        cfg = compose("cycle", overrides=[f"run_dir={tmp_path}/run", *folders, "images_per_shard=7"])
    cfg.stages, cfg.training, cfg.evaluation = STAGES, ["threads=1"], ["threads=2"]
    return cfg


class Steps:
    """Stands in for the processes: writes the files that mark a step as done, and may fail before that."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.started, self.fail_at = run_dir, [], ""
        self.arguments: dict[str, list[str]] = {}
        self.scores: dict[str, float] = dict(SCORES)
        self.seconds, self.hours = 0.0, 0.0

    def start(self, processes: ProcessLauncher, title: str, module: str, *arguments: str) -> None:
        self.started.append(title)
        self.arguments[title] = list(arguments)
        if title == self.fail_at:
            raise SamTrainError(f"{title} ended with exit code 1")
        times = {**processes.clock.times(), title: {"seconds": 3600 * self.hours, "devices": 2}}
        processes.clock.path.write_text(json.dumps(times))
        step, _, what = title.partition(": ")
        name = {"annotate": "shards/ledger.json", "train": "train/metrics.json", "evaluate": "evaluation.json"}.get(what)
        if name is None:
            return
        path = self.run_dir / step / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = {"counts": {"seconds": self.seconds}}
        path.write_text(json.dumps({"miou_at_1": self.scores.get(step, 0.3), **ledger}))
        if what == "train":
            (path.parent / "model.pt").write_text(step)


@pytest.fixture
def steps(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> Steps:
    fake = Steps(Path(config.run_dir))
    monkeypatch.setattr(ProcessLauncher, "start", lambda processes, *given: fake.start(processes, *given))  # noqa: PLW0108
    return fake


def overrides(steps: Steps, title: str) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in steps.arguments[title])


def seen_by(told: dict[str, str]) -> list[int]:
    """Numbers of the steps whose masks a training sees, those of stage three last."""
    return [int(number) for number in re.findall(r"/(\d)_\w+/shards", told["data.shards"] + told["data.sources"])]


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
        f"source={run_dir.parent}/truth",
        f"out={run_dir}/1_assisted_manual/shards",
        "first_image=0",
        "num_images=4",
        "images_per_shard=7",
        "threads=1",
    ]
    assert f"checkpoint={run_dir}/{first}" in steps.arguments["2_semi_automatic: annotate"]
    # the second model was not better, so the third stage works with the first
    assert f"checkpoint={run_dir}/{first}" in steps.arguments["3_fully_automatic: annotate"]
    training = steps.arguments["3_fully_automatic: train"]
    by_people = ",".join(f"{run_dir}/{step}/shards" for step in list(SCORES)[:2])
    sources = f"{{shards:[{by_people}],weight:10}},{{shards:[{run_dir}/3_fully_automatic/shards],weight:1}}"
    assert training[0] == "threads=1"
    assert training[-1] == "seed=7"
    run_in, begin_with = f"run_dir={run_dir}/3_fully_automatic/train", f"init_checkpoint={run_dir}/{first}"
    assert {"data.shards=null", f"data.sources=[{sources}]", run_in, begin_with} < set(training)
    assert not [a for a in steps.arguments["1_assisted_manual: train"] if a.startswith("init_checkpoint")]
    assert steps.arguments["2_semi_automatic: evaluate"] == [
        f"checkpoint={run_dir}/2_semi_automatic/train/model.pt",
        f"shards={run_dir.parent}/heldout",
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
    assert steps.started[:2] == [f"corpus: {config.corpus.ground_truth}", f"corpus: {config.corpus.heldout}"]
    assert steps.arguments[f"corpus: {config.corpus.heldout}"] == [
        "--out", config.corpus.heldout, "--num-images", "4", "--seed", "4", "--longest-side", "128"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("raise SystemExit(3)", SamTrainError, "ended with exit code 3; mend what it says"),
        ("import os; os.kill(os.getpid(), 9)", SamTrainError, "killed by signal 9.*to go on"),
        ("raise SystemExit(75)", SystemExit, "75"),
    ],
)
def test_step_that_fails(tmp_path: Path, code: str, error: type[BaseException], message: str) -> None:
    (tmp_path / "failing.py").write_text(code)
    with lock_run_folder(tmp_path) as lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(error, match=message):
            ProcessLauncher(tmp_path, lock).start("title", "failing")
    assert ProcessTimes(tmp_path / "clock.json").times()["title"]["devices"] >= 1


def test_clock_counts_what_was_waited_before_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.cycle.subprocess_runner.TICK_S", 0.05)
    clock = ProcessTimes(tmp_path / "clock.json")
    command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(ProcessTimes, "_add", ended_after(3, ProcessTimes._add))
        with pytest.raises(KeyboardInterrupt):
            clock.wait(process, "a: train")
        process.communicate()
    told = clock.times()["a: train"]["seconds"]
    assert 0.1 <= told <= time.monotonic() - began + 0.1


def ended_after(times: int, add: Any) -> Any:
    """`ProcessTimes._add` that ends the cycle when it was called so often."""
    calls: list[float] = []

    def wrapped(clock: ProcessTimes, title: str, seconds: float) -> None:
        add(clock, title, seconds)
        calls.append(seconds)
        if len(calls) == times:
            raise KeyboardInterrupt

    return wrapped


def test_child_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed cycle leaves running is a child that still holds the lock."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(clock: ProcessTimes, process: subprocess.Popen[bytes], title: str) -> int:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessTimes, "wait", begin)
    monkeypatch.setattr(subprocess.Popen, "__exit__", lambda *_: None)
    (tmp_path / "waiting.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with lock_run_folder(tmp_path) as lock, pytest.raises(KeyboardInterrupt):
        ProcessLauncher(tmp_path, lock).start("title", "waiting")
    with (tmp_path / ".lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started[0].kill()
        started[0].wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "path", ["runs/a", "/a b/c", "a=b", "a,b(c)[d]{e}", "it's", "back\\slash", "back\\'both", "ends\\", "ü", "x:y", "null", "$a"]
)
def test_paths_pass_through_the_grammar_of_overrides(path: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("engine", overrides=[f"out={hydra_quote(Path(path) / 'x')}", f"source={hydra_quote([path + '/x', 'b'])}"])
    assert cfg.out == f"{path}/x"
    assert list(cfg.source) == [f"{path}/x", "b"]


def test_measure_that_is_none_is_named_before_the_first_step(config: DictConfig, steps: Steps) -> None:
    config.promote_by = "miou_at_2"
    with pytest.raises(ConfigError, match="promote_by is 'miou_at_2', expected one of miou_at_1, miou_at_3, miou_at_5, oracle"):
        run(config)
    assert steps.started == []
    assert not steps.run_dir.exists()


def test_repeated_turns_take_the_next_images_and_the_last_takes_the_rest(config: DictConfig, steps: Steps) -> None:
    config.stages = [
        {"stage": "assisted_manual", "num_images": 3, "repeat": 2, "train_on": "new"},
        {"stage": "semi_automatic", "num_images": 2, "train_on": "annotated"},
        {"stage": "fully_automatic"},
    ]
    run(config)
    names = ["1_assisted_manual", "2_assisted_manual", "3_semi_automatic", "4_fully_automatic"]
    assert [title.partition(":")[0] for title in steps.started if title.endswith(": annotate")] == names
    asked = [overrides(steps, f"{name}: annotate") for name in names]
    assert [(told["first_image"], told.get("num_images")) for told in asked] == [("0", "3"), ("3", "3"), ("6", "2"), ("8", None)]
    seen = [seen_by(overrides(steps, f"{name}: train")) for name in names]
    assert seen == [[1], [2], [1, 2, 3], [1, 2, 3, 4]]


def test_where_all_count_alike_there_is_one_list(config: DictConfig, steps: Steps) -> None:
    config.human_mask_weight = 1
    run(config)
    last = overrides(steps, "3_fully_automatic: train")
    assert last["data.sources"] == "null"
    assert seen_by(last) == [1, 2, 3]


def test_a_cycle_begins_with_public_masks_and_the_paper_leaves_them_out_later(
    config: DictConfig, steps: Steps, tmp_path: Path
) -> None:
    write_shard(tmp_path / "public" / "sa_000000.tar", [sample(index) for index in range(50, 53)])
    config.initial_model = {"checkpoint": None, "shards": str(tmp_path / "public"), "training": ["seed=3"]}
    config.stages = [{**STAGES[0], "train_on": "annotated"}, *STAGES[1:]]
    run(config)
    assert steps.started[:2] == ["0_start: train", "0_start: evaluate"]
    begun = overrides(steps, "0_start: train")
    assert (begun["data.shards"], begun["seed"]) == (f"[{tmp_path}/public]", "3")
    assert "init_checkpoint" not in begun
    assert overrides(steps, "1_assisted_manual: annotate")["checkpoint"].endswith("0_start/train/model.pt")
    assert "public" not in overrides(steps, "1_assisted_manual: train")["data.shards"]
    assert "public" in overrides(steps, "2_semi_automatic: train")["data.shards"]


def test_a_cycle_begins_with_a_model(config: DictConfig, steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "weak.pt").write_text("weak")
    config.initial_model.checkpoint = str(tmp_path / "weak.pt")
    steps.scores["0_start"] = 0.55
    run(config)
    kept = steps.run_dir / "0_start" / "weak.pt"
    assert kept.read_text() == "weak", "a run folder holds every model that it promotes"
    assert overrides(steps, "1_assisted_manual: train")["init_checkpoint"] == str(kept)
    history = json.loads((steps.run_dir / "promoted.json").read_bytes())["history"]
    assert [(e["step"], e["promoted"]) for e in history[:2]] == [("0_start", True), ("1_assisted_manual", False)]
    config.initial_model.checkpoint = str(tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match=r"gone\.pt: expected a file"):
        run(config)


@pytest.mark.parametrize(("budget", "seconds", "hours"), [("annotator_hours", 1800.0, 0.0), ("device_hours", 0.0, 0.1)])
def test_a_budget_ends_its_stage_and_the_next_goes_on_behind_it(
    config: DictConfig, steps: Steps, budget: str, seconds: float, hours: float
) -> None:
    """Two turns of half an hour of annotators each, or of three processes of six minutes on two devices each."""
    limit = {"annotator_hours": 0.9, "device_hours": 1.1}[budget]
    config.stages = [
        {"stage": "assisted_manual", "num_images": 2, "repeat": 4, "budget": {budget: limit}},
        {"stage": "fully_automatic"},
    ]
    steps.seconds, steps.hours = seconds, hours
    run(config)
    done = [title for title in steps.started if title.endswith(": annotate")]
    assert done == ["1_assisted_manual: annotate", "2_assisted_manual: annotate", "5_fully_automatic: annotate"]
    assert overrides(steps, "5_fully_automatic: annotate")["first_image"] == "4"
    assert seen_by(overrides(steps, "5_fully_automatic: train")) == [1, 2, 5]
    why = json.loads((steps.run_dir / "3_assisted_manual" / "left_out.json").read_bytes())["why"]
    assert f"of {limit:g} {budget.replace('_', ' ')}" in why
    steps.started.clear()
    run(config)
    assert steps.started == ["report"]


def test_a_begun_step_goes_on_though_the_budget_is_spent(config: DictConfig, steps: Steps) -> None:
    config.stages = [{"stage": "assisted_manual", "num_images": 2, "repeat": 2, "budget": {"device_hours": 0.1}}]
    steps.fail_at, steps.hours = "1_assisted_manual: train", 1.0
    with pytest.raises(SamTrainError):
        run(config)
    steps.fail_at = ""
    run(config)
    assert "1_assisted_manual: evaluate" in steps.started
    assert "2_assisted_manual: annotate" not in steps.started


def test_held_out_picture_in_the_corpus_is_an_error(config: DictConfig, steps: Steps, tmp_path: Path) -> None:
    """By content: its key, its shard and its JPEG bytes are others."""
    record, again = sample(5, quality=60)
    twin = ImageRecord(key="other", image_id=999, width=record.width, height=record.height, masks=record.masks)
    write_shard(tmp_path / "leaky" / "sa_000000.tar", [sample(101), (twin, again)])
    config.corpus.heldout = str(tmp_path / "leaky")
    with pytest.raises(ConfigError, match=r"1 held-out pictures are in the corpus: .* sa_000005 is other.*dedupe"):
        run(config)
    assert steps.started == []


def test_held_out_masks_are_none_to_begin_with(config: DictConfig, steps: Steps) -> None:
    config.initial_model.shards = config.corpus.heldout
    with pytest.raises(ConfigError, match="is in the corpus and held out"):
        run(config)


def test_corpus_is_looked_at_again_when_it_changed(config: DictConfig, steps: Steps, tmp_path: Path) -> None:
    run(config)
    write_shard(tmp_path / "truth" / "sa_000001.tar", [sample(101)])
    with pytest.raises(ConfigError, match="1 held-out pictures are in the corpus"):
        run(config)


def test_more_pictures_than_there_are(config: DictConfig, steps: Steps) -> None:
    config.stages = [{"stage": "assisted_manual", "num_images": 7, "repeat": 2}]
    with pytest.raises(ConfigError, match="2_assisted_manual is to annotate images 7 to 13, and the corpus has 12"):
        run(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_images": 3}, "names no stage"),
        ({"stage": "assisted_manual", "images": 3}, "has images: expected some of stage, repeat"),
        ({"stage": "assisted_manual", "num_images": 0}, "num_images is 0, expected a whole number of at least 1"),
        ({"stage": "assisted_manual", "repeat": 2}, "is repeated: it needs num_images and no first_image"),
        ({"stage": "assisted_manual", "train_on": "old"}, "train_on is 'old', expected one of all, annotated, new"),
        ({"stage": "assisted_manual", "budget": {"hours": 1}}, "budget hours=1, expected hours above 0 for annotator_hours or"),
        ({"stage": "by_magic"}, "entry 1 of stages is 'by_magic', expected one of assisted_manual"),
    ],
)
def test_entry_that_is_none(config: DictConfig, steps: Steps, entry: dict[str, Any], message: str) -> None:
    config.stages = [entry]
    with pytest.raises(ConfigError, match=message):
        run(config)
    assert not steps.run_dir.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("corpus.leak_bits", 48, "leak_bits is 48, expected 0 to 47"), ("min_gain", -0.1, "min_gain is -0.1, expected 0 or more")],
)
def test_value_that_cannot_be(config: DictConfig, steps: Steps, key: str, value: float, message: str) -> None:
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError, match=message):
        run(config)
    assert not steps.run_dir.exists()


def test_a_small_gain_is_none(config: DictConfig, steps: Steps) -> None:
    config.min_gain = 0.2
    run(config)
    history = json.loads((steps.run_dir / "promoted.json").read_bytes())["history"]
    assert [entry["promoted"] for entry in history] == [True, False, False]


def word(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-cycle", *arguments])
    main()


def test_rolled_back_the_earlier_model_works_in_the_steps_that_follow(
    config: DictConfig, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.scores = {**SCORES, "2_semi_automatic": 0.55}
    steps.fail_at = "3_fully_automatic: annotate"
    with pytest.raises(SamTrainError):
        run(config)
    word(monkeypatch, "rollback", f"run={steps.run_dir}", "step=1_assisted_manual", "reason=it hates cats")
    assert (steps.run_dir / "model.pt").read_text() == "1_assisted_manual"
    steps.fail_at = ""
    run(config)
    assert overrides(steps, "3_fully_automatic: annotate")["checkpoint"].endswith("1_assisted_manual/train/model.pt")
    history = json.loads((steps.run_dir / "promoted.json").read_bytes())["history"]
    entry = history[2]
    assert (entry["step"], entry["rolled_back_from"], entry["because"]) == (
        "1_assisted_manual",
        "2_semi_automatic",
        "it hates cats",
    )
    assert [e["step"] for e in history] == ["1_assisted_manual", "2_semi_automatic", "1_assisted_manual", "3_fully_automatic"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollback", "run={run}", "step=9_x"], "has judged no model of '9_x': expected one of 1_assisted_manual"),
        (["rollback", "run={run}"], "step is missing: expected run=... step=... [reason=...]"),
        (["rollback", "run={run}", "step=1_assisted_manual", "because=x"], "because: renamed to reason"),
        (["rollback", "run={run}", "stp=1"], "did you mean step? expected run=... step=..."),
        (["rollback", "run={run}/nowhere", "step=1"], "no such file or folder: give the folder of the cycle"),
        (
            ["step", "run={run}", "name=4_x/train"],
            "has no action '4_x/train': expected one of corpus, 1_assisted_manual/annotate",
        ),
        (["rollback", "run={run}", "step=3_fully_automatic"], "the model of 3_fully_automatic works already"),
    ],
)
def test_words_say_what_they_want(
    config: DictConfig, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    run(config)
    with pytest.raises(SystemExit, match="1"):
        word(monkeypatch, *(argument.format(run=steps.run_dir) for argument in arguments))
    assert message in capsys.readouterr().err


def test_an_action_by_its_name(config: DictConfig, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job does, for all actions in turn, is what the cycle does."""
    run(config)
    told, started = dict(steps.arguments), list(steps.started)
    for path in ("promoted.json", "corpus.json"):
        (steps.run_dir / path).unlink()
    for step in SCORES:
        for path in ("shards/ledger.json", "train/metrics.json", "evaluation.json"):
            (steps.run_dir / step / path).unlink()
    steps.started, steps.arguments = [], {}
    for name in ["corpus", *(f"{step}/{what}" for step in SCORES for what in ("annotate", "train", "evaluate")), "report"]:
        word(monkeypatch, "step", f"run={steps.run_dir}", f"name={name}")
    assert (steps.started, steps.arguments) == (started, told)


def test_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def say(text: str) -> None:
            said.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(data_engine.cycle.lock.console, "print", say)
        with lock_run_folder(tmp_path):
            assert "waiting for it to end" in said[0]


def test_another_cycle_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"corpus": {"ground_truth": "a"}, "stages": [1], "name": "x"})
    check_same_cycle(cfg, tmp_path)  # nothing there yet
    save_resolved(cfg, tmp_path / "config.yaml")
    check_same_cycle(OmegaConf.merge(cfg, {"name": "y"}), tmp_path)
    with pytest.raises(ConfigError, match=r"another corpus.*remove the folder"):
        check_same_cycle(OmegaConf.merge(cfg, {"corpus": {"ground_truth": "b"}}), tmp_path)


def test_ablation_learns_from_each_set_of_stages_and_from_one_model(
    config: DictConfig, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.stages = [
        {"stage": "assisted_manual", "num_images": 2, "repeat": 2},
        {"stage": "semi_automatic", "num_images": 2},
        {"stage": "fully_automatic", "training": ["trainer.max_steps=9"]},
    ]
    run(config)
    told: dict[str, dict[str, str]] = {}

    def start(processes: ProcessLauncher, title: str, module: str, *arguments: str) -> None:
        told[title] = dict(argument.split("=", 1) for argument in arguments)
        path = Path(told[title]["out"] if "out" in told[title] else f"{told[title]['run_dir']}/metrics.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"miou_at_1": 0.25}))

    monkeypatch.setattr(ProcessLauncher, "start", start)
    word(monkeypatch, "ablation", f"run={steps.run_dir}", "training=seed=4 optim.warmup_steps=3")
    names = {"manual": [2], "manual_semi_automatic": [2, 3], "all": [2, 3, 4], "automatic": [4]}
    for name, numbers in names.items():
        training = told[f"ablation {name}: train"]
        assert seen_by(training) == numbers, "the first model's own masks are in none"
        assert (training["data.shards"] == "null") == (name == "all"), "only there people's pictures come more often"
        assert training["init_checkpoint"].endswith("1_assisted_manual/train/model.pt")
        assert (training["seed"], training["trainer.max_steps"], training["optim.warmup_steps"]) == ("4", "9", "3")
        assert told[f"ablation {name}: evaluate"]["checkpoint"].endswith(f"ablation/{name}/train/model.pt")
    found = json.loads((steps.run_dir / "ablation.json").read_bytes())
    assert {name: value["miou_at_1"] for name, value in found.items()} == dict.fromkeys(names, 0.25)
    assert "0.250" in capsys.readouterr().out
    told.clear()
    word(monkeypatch, "ablation", f"run={steps.run_dir}")
    assert told == {}, "what is measured is passed over"


def test_nothing_to_compare(
    config: DictConfig, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    with pytest.raises(SystemExit):
        word(monkeypatch, "ablation", f"run={steps.run_dir}")
    assert "has no masks of assisted_manual (after its first model): nothing to compare" in capsys.readouterr().err
