"""Order of the actions of a data-engine loop, their overrides, resumption, and the end of a stage by its budget.

Only the tests of run times and of the lock start processes; tests/integration/test_end_to_end.py starts them all.
"""

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
from data_engine.cycle.run_cycle import check_same_cycle, run_cycle
from data_engine.cycle.subprocess_runner import ProcessLauncher
from data_engine.cycle_folder import CycleFolder
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
    """Return an image of random blocks, which is near no other one."""
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


class FakeProcesses:
    """Replaces the processes: writes the files that mark an action as done, or fails before that."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, CycleFolder(run_dir)
        self.started: list[str] = []
        self.fail_at = ""
        self.arguments: dict[str, list[str]] = {}
        self.scores: dict[str, float] = dict(SCORES)
        self.seconds, self.hours = 0.0, 0.0

    def start(self, title: str, module: str, *arguments: str) -> None:
        self.started.append(title)
        self.arguments[title] = list(arguments)
        if title == self.fail_at:
            raise SamTrainError(f"{title} ended with exit code 1")
        self.folder.add_process_time(title, 3600 * self.hours, devices=2)
        step, _, kind = title.partition(": ")
        if step == "final":
            self.folder.final_evaluation(kind).write_text(json.dumps({"miou_at_1": 0.5}))
        name = {"annotate": "shards/ledger.json", "train": "train/metrics.json", "evaluate": "evaluation.json"}.get(kind)
        if name is None:
            return
        path = self.run_dir / step / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = {"counts": {"seconds": self.seconds}}
        path.write_text(json.dumps({"miou_at_1": self.scores.get(step, 0.3), **ledger}))
        if kind == "train":
            (path.parent / "model.pt").write_text(step)


@pytest.fixture
def processes(config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> FakeProcesses:
    fake = FakeProcesses(Path(config.run_dir))
    monkeypatch.setattr(ProcessLauncher, "start", lambda _, *arguments: fake.start(*arguments))
    return fake


def overrides(processes: FakeProcesses, title: str) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in processes.arguments[title])


def steps_trained_on(training: dict[str, str]) -> list[int]:
    """Return the numbers of the steps whose masks a training uses, those of stage three last."""
    return [int(number) for number in re.findall(r"/(\d)_\w+/shards", training["data.shards"] + training["data.sources"])]


ALL = [f"{step}: {kind}" for step in SCORES for kind in ("annotate", "train", "evaluate")] + ["report"]


def test_executes_actions_in_order_and_stores_the_decisions(config: DictConfig, processes: FakeProcesses) -> None:
    run_cycle(config)
    assert processes.started == ALL
    history = json.loads((processes.run_dir / "promoted.json").read_bytes())["history"]
    assert [(entry["step"], entry["promoted"]) for entry in history] == list(zip(SCORES, [True, False, True], strict=True))


def test_actions_receive_the_promoted_model_and_the_earlier_masks(config: DictConfig, processes: FakeProcesses) -> None:
    run_cycle(config)
    run_dir, first = processes.run_dir, "1_assisted_manual/train/model.pt"
    assert processes.arguments["1_assisted_manual: annotate"] == [
        "stage=assisted_manual",
        f"source={run_dir.parent}/truth",
        f"out={run_dir}/1_assisted_manual/shards",
        "first_image=0",
        "num_images=4",
        "images_per_shard=7",
        "threads=1",
    ]
    assert f"checkpoint={run_dir}/{first}" in processes.arguments["2_semi_automatic: annotate"]
    # the second model was not better, so the third stage uses the first
    assert f"checkpoint={run_dir}/{first}" in processes.arguments["3_fully_automatic: annotate"]
    training = processes.arguments["3_fully_automatic: train"]
    human = ",".join(f"{run_dir}/{step}/shards" for step in list(SCORES)[:2])
    sources = f"{{shards:[{human}],weight:10}},{{shards:[{run_dir}/3_fully_automatic/shards],weight:1}}"
    assert training[0] == "threads=1"
    assert training[-1] == "seed=7"
    folder, checkpoint = f"run_dir={run_dir}/3_fully_automatic/train", f"init_checkpoint={run_dir}/{first}"
    assert {"data.shards=null", f"data.sources=[{sources}]", folder, checkpoint} < set(training)
    assert not [a for a in processes.arguments["1_assisted_manual: train"] if a.startswith("init_checkpoint")]
    assert processes.arguments["2_semi_automatic: evaluate"] == [
        f"checkpoint={run_dir}/2_semi_automatic/train/model.pt",
        f"shards={run_dir.parent}/heldout",
        f"out={run_dir}/2_semi_automatic/evaluation.json",
        "threads=2",
    ]


@pytest.mark.parametrize("fail_at", ALL)
def test_resumes_at_the_action_that_failed(config: DictConfig, processes: FakeProcesses, fail_at: str) -> None:
    processes.fail_at = fail_at
    with pytest.raises(SamTrainError, match="exit code 1"):
        run_cycle(config)
    assert processes.started == ALL[: ALL.index(fail_at) + 1]
    processes.started, processes.fail_at = [], ""
    run_cycle(config)
    assert processes.started == ALL[ALL.index(fail_at) :]


def test_finished_loop_only_writes_its_report_again(config: DictConfig, processes: FakeProcesses) -> None:
    run_cycle(config)
    before = (processes.run_dir / "promoted.json").read_bytes()
    processes.started = []
    run_cycle(config)
    assert processes.started == ["report"]
    assert (processes.run_dir / "promoted.json").read_bytes() == before


def test_composes_a_synthetic_corpus(config: DictConfig, processes: FakeProcesses) -> None:
    config.corpus.synthetic = {"num_images": 8, "num_heldout": 4, "seed": 3, "longest_side": 128}
    run_cycle(config)
    assert processes.started[:2] == [f"corpus: {config.corpus.ground_truth}", f"corpus: {config.corpus.heldout}"]
    assert processes.arguments[f"corpus: {config.corpus.heldout}"] == [
        "--out", config.corpus.heldout, "--num-images", "4", "--seed", "4", "--longest-side", "128"
    ]  # fmt: skip


def test_measures_the_first_and_the_last_model_on_the_final_shards(
    config: DictConfig, processes: FakeProcesses, tmp_path: Path
) -> None:
    write_shard(tmp_path / "final" / "sa_000000.tar", [sample(index) for index in range(200, 202)])
    (tmp_path / "weak.pt").write_text("weak")
    config.initial_model.checkpoint, config.corpus.final = str(tmp_path / "weak.pt"), str(tmp_path / "final")
    run_cycle(config)
    assert processes.started[-3:] == ["final: start", "final: promoted", "report"]
    assert overrides(processes, "final: start")["checkpoint"] == f"{processes.run_dir}/0_start/weak.pt"
    promoted = overrides(processes, "final: promoted")
    assert promoted["checkpoint"] == f"{processes.run_dir}/3_fully_automatic/train/model.pt"
    assert promoted["shards"] == config.corpus.final
    processes.started = []
    run_cycle(config)
    assert processes.started == ["report"]


def test_rejects_final_images_in_the_corpus(config: DictConfig, processes: FakeProcesses, tmp_path: Path) -> None:
    write_shard(tmp_path / "final" / "sa_000000.tar", [sample(200), sample(5)])
    config.corpus.final = str(tmp_path / "final")
    with pytest.raises(ConfigError, match=r"1 held-out images are in the corpus"):
        run_cycle(config)
    assert processes.started == []


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("raise SystemExit(3)", SamTrainError, "ended with exit code 3; fix the error above"),
        ("import os; os.kill(os.getpid(), 9)", SamTrainError, "killed by signal 9.*to resume"),
        ("raise SystemExit(75)", SystemExit, "75"),
    ],
)
def test_reports_a_process_that_failed_or_was_preempted(
    tmp_path: Path, code: str, error: type[BaseException], message: str
) -> None:
    (tmp_path / "failing.py").write_text(code)
    folder = CycleFolder(tmp_path)
    with lock_run_folder(folder) as lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(error, match=message):
            ProcessLauncher(folder, lock).start("title", "failing")
    assert folder.read_process_times()["title"]["devices"] >= 1


def test_run_time_before_a_kill_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.cycle.subprocess_runner.UPDATE_INTERVAL_S", 0.05)
    monkeypatch.setattr(CycleFolder, "add_process_time", interrupted_after(3, CycleFolder.add_process_time))
    monkeypatch.setattr(subprocess.Popen, "__exit__", kill_and_wait)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "waiting.py").write_text("import time; time.sleep(60)")
    folder, began = CycleFolder(tmp_path), time.monotonic()
    with lock_run_folder(folder) as lock, pytest.raises(KeyboardInterrupt):
        ProcessLauncher(folder, lock).start("a: train", "waiting")
    assert 0.1 <= folder.read_process_times()["a: train"]["seconds"] <= time.monotonic() - began + 0.1


def kill_and_wait(process: subprocess.Popen[bytes], *_: object) -> None:
    process.kill()
    process.wait()


def interrupted_after(num_calls: int, add: Any) -> Any:
    """Return `CycleFolder.add_process_time` with a KeyboardInterrupt after `num_calls` calls."""
    calls: list[float] = []

    def wrapped(folder: CycleFolder, title: str, seconds: float, *, devices: int) -> None:
        add(folder, title, seconds, devices=devices)
        calls.append(seconds)
        if len(calls) == num_calls:
            raise KeyboardInterrupt

    return wrapped


def test_process_of_a_killed_loop_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(launcher: ProcessLauncher, process: subprocess.Popen[bytes], title: str) -> int:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessLauncher, "_wait", interrupt)
    monkeypatch.setattr(subprocess.Popen, "__exit__", lambda *_: None)
    (tmp_path / "waiting.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with lock_run_folder(CycleFolder(tmp_path)) as lock, pytest.raises(KeyboardInterrupt):
        ProcessLauncher(CycleFolder(tmp_path), lock).start("title", "waiting")
    with (tmp_path / ".lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started[0].kill()
        started[0].wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "path", ["runs/a", "/a b/c", "a=b", "a,b(c)[d]{e}", "it's", "back\\slash", "back\\'both", "ends\\", "ü", "x:y", "null", "$a"]
)
def test_quoted_paths_survive_the_grammar_of_overrides(path: str) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("engine", overrides=[f"out={hydra_quote(Path(path) / 'x')}", f"source={hydra_quote([path + '/x', 'b'])}"])
    assert cfg.out == f"{path}/x"
    assert list(cfg.source) == [f"{path}/x", "b"]


def test_rejects_an_unknown_measure_before_the_first_step(config: DictConfig, processes: FakeProcesses) -> None:
    config.promote_by = "miou_at_2"
    with pytest.raises(ConfigError, match="promote_by is 'miou_at_2', expected one of miou_at_1, miou_at_3, miou_at_5, oracle"):
        run_cycle(config)
    assert processes.started == []
    assert not processes.run_dir.exists()


def test_repeated_steps_take_the_next_images_and_the_last_takes_the_rest(config: DictConfig, processes: FakeProcesses) -> None:
    config.stages = [
        {"stage": "assisted_manual", "num_images": 3, "repeat": 2, "train_on": "new"},
        {"stage": "semi_automatic", "num_images": 2, "train_on": "annotated"},
        {"stage": "fully_automatic"},
    ]
    run_cycle(config)
    names = ["1_assisted_manual", "2_assisted_manual", "3_semi_automatic", "4_fully_automatic"]
    assert [title.partition(":")[0] for title in processes.started if title.endswith(": annotate")] == names
    annotations = [overrides(processes, f"{name}: annotate") for name in names]
    images = [(annotation["first_image"], annotation.get("num_images")) for annotation in annotations]
    assert images == [("0", "3"), ("3", "3"), ("6", "2"), ("8", None)]
    trained_on = [steps_trained_on(overrides(processes, f"{name}: train")) for name in names]
    assert trained_on == [[1], [2], [1, 2, 3], [1, 2, 3, 4]]


def test_equal_weights_need_only_one_list_of_shards(config: DictConfig, processes: FakeProcesses) -> None:
    config.human_mask_weight = 1
    run_cycle(config)
    last = overrides(processes, "3_fully_automatic: train")
    assert last["data.sources"] == "null"
    assert steps_trained_on(last) == [1, 2, 3]


def test_initial_model_is_trained_on_public_masks_that_later_steps_can_exclude(
    config: DictConfig, processes: FakeProcesses, tmp_path: Path
) -> None:
    write_shard(tmp_path / "public" / "sa_000000.tar", [sample(index) for index in range(50, 53)])
    config.initial_model = {"checkpoint": None, "shards": str(tmp_path / "public"), "training": ["seed=3"]}
    config.stages = [{**STAGES[0], "train_on": "annotated"}, *STAGES[1:]]
    run_cycle(config)
    assert processes.started[:2] == ["0_start: train", "0_start: evaluate"]
    initial = overrides(processes, "0_start: train")
    assert (initial["data.shards"], initial["seed"]) == (f"[{tmp_path}/public]", "3")
    assert "init_checkpoint" not in initial
    assert overrides(processes, "1_assisted_manual: annotate")["checkpoint"].endswith("0_start/train/model.pt")
    assert "public" not in overrides(processes, "1_assisted_manual: train")["data.shards"]
    assert "public" in overrides(processes, "2_semi_automatic: train")["data.shards"]


def test_initial_checkpoint_is_copied_and_evaluated(config: DictConfig, processes: FakeProcesses, tmp_path: Path) -> None:
    (tmp_path / "weak.pt").write_text("weak")
    config.initial_model.checkpoint = str(tmp_path / "weak.pt")
    processes.scores["0_start"] = 0.55
    run_cycle(config)
    copy = processes.run_dir / "0_start" / "weak.pt"
    assert copy.read_text() == "weak", "a run folder holds every model that it promotes"
    assert overrides(processes, "1_assisted_manual: train")["init_checkpoint"] == str(copy)
    history = json.loads((processes.run_dir / "promoted.json").read_bytes())["history"]
    assert [(e["step"], e["promoted"]) for e in history[:2]] == [("0_start", True), ("1_assisted_manual", False)]
    config.initial_model.checkpoint = str(tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match=r"gone\.pt: no checkpoint at"):
        run_cycle(config)


@pytest.mark.parametrize(("budget", "seconds", "hours"), [("annotator_hours", 1800.0, 0.0), ("device_hours", 0.0, 0.1)])
def test_spent_budget_ends_its_stage_and_the_next_stage_follows(
    config: DictConfig, processes: FakeProcesses, budget: str, seconds: float, hours: float
) -> None:
    """Two steps of half an annotator hour each, or of three processes of six minutes on two devices each."""
    limit = {"annotator_hours": 0.9, "device_hours": 1.1}[budget]
    config.stages = [
        {"stage": "assisted_manual", "num_images": 2, "repeat": 4, "budget": {budget: limit}},
        {"stage": "fully_automatic"},
    ]
    processes.seconds, processes.hours = seconds, hours
    run_cycle(config)
    done = [title for title in processes.started if title.endswith(": annotate")]
    assert done == ["1_assisted_manual: annotate", "2_assisted_manual: annotate", "5_fully_automatic: annotate"]
    assert overrides(processes, "5_fully_automatic: annotate")["first_image"] == "4"
    assert steps_trained_on(overrides(processes, "5_fully_automatic: train")) == [1, 2, 5]
    why = json.loads((processes.run_dir / "3_assisted_manual" / "left_out.json").read_bytes())["why"]
    assert f"of {limit:g} {budget.replace('_', ' ')}" in why
    processes.started.clear()
    run_cycle(config)
    assert processes.started == ["report"]


def test_completes_a_step_that_began_before_its_budget_was_spent(config: DictConfig, processes: FakeProcesses) -> None:
    config.stages = [{"stage": "assisted_manual", "num_images": 2, "repeat": 2, "budget": {"device_hours": 0.1}}]
    processes.fail_at, processes.hours = "1_assisted_manual: train", 1.0
    with pytest.raises(SamTrainError):
        run_cycle(config)
    processes.fail_at = ""
    run_cycle(config)
    assert "1_assisted_manual: evaluate" in processes.started
    assert "2_assisted_manual: annotate" not in processes.started


def test_rejects_a_corpus_with_a_held_out_image(config: DictConfig, processes: FakeProcesses, tmp_path: Path) -> None:
    """The image is found by its content: its key, its shard and its JPEG bytes differ."""
    record, recompressed = sample(5, quality=60)
    twin = ImageRecord(key="other", image_id=999, width=record.width, height=record.height, masks=record.masks)
    write_shard(tmp_path / "leaky" / "sa_000000.tar", [sample(101), (twin, recompressed)])
    config.corpus.heldout = str(tmp_path / "leaky")
    with pytest.raises(ConfigError, match=r"1 held-out images are in the corpus: .* sa_000005 is other.*dedupe"):
        run_cycle(config)
    assert processes.started == []


def test_rejects_held_out_shards_for_the_initial_model(config: DictConfig, processes: FakeProcesses) -> None:
    config.initial_model.shards = config.corpus.heldout
    with pytest.raises(ConfigError, match="is used for training and held out"):
        run_cycle(config)


def test_checks_the_corpus_again_if_it_changed(config: DictConfig, processes: FakeProcesses, tmp_path: Path) -> None:
    run_cycle(config)
    write_shard(tmp_path / "truth" / "sa_000001.tar", [sample(101)])
    with pytest.raises(ConfigError, match="1 held-out images are in the corpus"):
        run_cycle(config)


def test_rejects_steps_that_need_more_images_than_the_corpus_has(config: DictConfig, processes: FakeProcesses) -> None:
    config.stages = [{"stage": "assisted_manual", "num_images": 7, "repeat": 2}]
    with pytest.raises(ConfigError, match="2_assisted_manual is to annotate images 7 to 13, but the corpus has 12"):
        run_cycle(config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_images": 3}, "names no stage"),
        ({"stage": "assisted_manual", "images": 3}, "has unknown keys images: expected some of stage, repeat"),
        ({"stage": "assisted_manual", "num_images": 0}, "num_images is 0, expected an integer of at least 1"),
        ({"stage": "assisted_manual", "repeat": 2}, "is repeated: give num_images and no first_image"),
        ({"stage": "assisted_manual", "train_on": "old"}, "train_on is 'old', expected one of all, annotated, new"),
        ({"stage": "assisted_manual", "budget": {"hours": 1}}, "budget hours=1, expected hours above 0 for annotator_hours or"),
        ({"stage": "by_magic"}, "entry 1 of stages is 'by_magic', expected one of assisted_manual"),
    ],
)
def test_rejects_an_invalid_entry(config: DictConfig, processes: FakeProcesses, entry: dict[str, Any], message: str) -> None:
    config.stages = [entry]
    with pytest.raises(ConfigError, match=message):
        run_cycle(config)
    assert not processes.run_dir.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("corpus.leak_bits", 48, "leak_bits is 48, expected 0 to 47"), ("min_gain", -0.1, "min_gain is -0.1, expected 0 or more")],
)
def test_rejects_values_out_of_range(config: DictConfig, processes: FakeProcesses, key: str, value: float, message: str) -> None:
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError, match=message):
        run_cycle(config)
    assert not processes.run_dir.exists()


def test_does_not_promote_for_a_gain_below_min_gain(config: DictConfig, processes: FakeProcesses) -> None:
    config.min_gain = 0.2
    run_cycle(config)
    history = json.loads((processes.run_dir / "promoted.json").read_bytes())["history"]
    assert [entry["promoted"] for entry in history] == [True, False, False]


def sam_cycle(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-cycle", *arguments])
    main()


def test_steps_after_a_roll_back_use_the_earlier_model(
    config: DictConfig, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.scores = {**SCORES, "2_semi_automatic": 0.55}
    processes.fail_at = "3_fully_automatic: annotate"
    with pytest.raises(SamTrainError):
        run_cycle(config)
    sam_cycle(monkeypatch, "rollback", f"run={processes.run_dir}", "step=1_assisted_manual", "reason=it hates cats")
    assert (processes.run_dir / "model.pt").read_text() == "1_assisted_manual"
    processes.fail_at = ""
    run_cycle(config)
    assert overrides(processes, "3_fully_automatic: annotate")["checkpoint"].endswith("1_assisted_manual/train/model.pt")
    history = json.loads((processes.run_dir / "promoted.json").read_bytes())["history"]
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
        (["rollback", "run={run}", "step=9_x"], "has evaluated no model of '9_x': expected one of 1_assisted_manual"),
        (["rollback", "run={run}"], "step is missing: expected run=... step=... [reason=...]"),
        (["rollback", "run={run}", "step=1_assisted_manual", "because=x"], "because: renamed to reason"),
        (["rollback", "run={run}", "stp=1"], "did you mean step? expected run=... step=..."),
        (["rollback", "run={run}/nowhere", "step=1"], "no such file or folder: give the folder of the cycle"),
        (
            ["step", "run={run}", "name=4_x/train"],
            "has no action '4_x/train': expected one of corpus, 1_assisted_manual/annotate",
        ),
        (["rollback", "run={run}", "step=3_fully_automatic"], "the model of 3_fully_automatic is promoted already"),
    ],
)
def test_subcommands_reject_invalid_arguments(
    config: DictConfig, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    run_cycle(config)
    with pytest.raises(SystemExit, match="1"):
        sam_cycle(monkeypatch, *(argument.format(run=processes.run_dir) for argument in arguments))
    assert message in capsys.readouterr().err


def test_step_subcommand_executes_one_action(
    config: DictConfig, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All actions executed one by one, as SLURM jobs do, give the same processes as the loop."""
    run_cycle(config)
    arguments, started = dict(processes.arguments), list(processes.started)
    for path in ("promoted.json", "corpus.json"):
        (processes.run_dir / path).unlink()
    for step in SCORES:
        for path in ("shards/ledger.json", "train/metrics.json", "evaluation.json"):
            (processes.run_dir / step / path).unlink()
    processes.started, processes.arguments = [], {}
    for name in ["corpus", *(f"{step}/{kind}" for step in SCORES for kind in ("annotate", "train", "evaluate")), "report"]:
        sam_cycle(monkeypatch, "step", f"run={processes.run_dir}", f"name={name}")
    assert (processes.started, processes.arguments) == (started, arguments)


def test_waits_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def release_after_message(text: str) -> None:
            messages.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(data_engine.cycle.lock.console, "print", release_after_message)
        with lock_run_folder(CycleFolder(tmp_path)):
            assert messages[0].endswith("left running: waiting")


def test_rejects_another_loop_in_the_same_folder(tmp_path: Path) -> None:
    folder = CycleFolder(tmp_path)
    cfg = OmegaConf.create({"corpus": {"ground_truth": "a"}, "stages": [1], "name": "x"})
    check_same_cycle(cfg, folder)  # the folder is empty
    save_resolved(cfg, tmp_path / "config.yaml")
    check_same_cycle(OmegaConf.merge(cfg, {"name": "y"}), folder)
    with pytest.raises(ConfigError, match=r"another corpus.*remove the folder"):
        check_same_cycle(OmegaConf.merge(cfg, {"corpus": {"ground_truth": "b"}}), folder)


def test_ablation_trains_on_each_set_of_stages_from_the_same_model(
    config: DictConfig, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.stages = [
        {"stage": "assisted_manual", "num_images": 2, "repeat": 2},
        {"stage": "semi_automatic", "num_images": 2},
        {"stage": "fully_automatic", "training": ["trainer.max_steps=9"]},
    ]
    run_cycle(config)
    started: dict[str, dict[str, str]] = {}

    def start(launcher: ProcessLauncher, title: str, module: str, *arguments: str) -> None:
        started[title] = dict(argument.split("=", 1) for argument in arguments)
        path = Path(started[title].get("out", f"{started[title].get('run_dir')}/metrics.json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"miou_at_1": 0.25}))

    monkeypatch.setattr(ProcessLauncher, "start", start)
    sam_cycle(monkeypatch, "ablation", f"run={processes.run_dir}", "training=seed=4 optim.warmup_steps=3")
    names = {"manual": [2], "manual_semi_automatic": [2, 3], "all": [2, 3, 4], "automatic": [4]}
    for name, numbers in names.items():
        training = started[f"ablation {name}: train"]
        assert steps_trained_on(training) == numbers, "no set has the masks of the first model's step"
        assert (training["data.shards"] == "null") == (name == "all"), "only this set has masks of both kinds to weight"
        assert training["init_checkpoint"].endswith("1_assisted_manual/train/model.pt")
        assert (training["seed"], training["trainer.max_steps"], training["optim.warmup_steps"]) == ("4", "9", "3")
        assert started[f"ablation {name}: evaluate"]["checkpoint"].endswith(f"ablation/{name}/train/model.pt")
    results = json.loads((processes.run_dir / "ablation.json").read_bytes())
    assert {name: value["miou_at_1"] for name, value in results.items()} == dict.fromkeys(names, 0.25)
    assert "0.250" in capsys.readouterr().out
    started.clear()
    sam_cycle(monkeypatch, "ablation", f"run={processes.run_dir}")
    assert started == {}, "finished trainings and evaluations are skipped"


def test_ablation_needs_masks_of_every_stage(
    config: DictConfig, processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cycle(config)
    with pytest.raises(SystemExit):
        sam_cycle(monkeypatch, "ablation", f"run={processes.run_dir}")
    assert "has no masks of assisted_manual (after its first model): nothing to compare" in capsys.readouterr().err
