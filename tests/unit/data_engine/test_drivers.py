"""With every driver and with concurrent commands each slice is made once, with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_sample
from hydra import compose, initialize_config_dir

import data_engine.drivers
from data_engine.drivers import Driver, LocalDriver, RayDriver, SlurmDriver
from data_engine.drivers.base import SliceQueue
from data_engine.drivers.local import num_cpus, worker_specs
from data_engine.engine import open_source, run_provenance, run_stage, select_slices
from data_engine.slices import EngineJob, SliceResult, with_absolute_paths
from data_engine.stages import Stage
from sam_train.config import build, config_dir, to_plain
from sam_train.errors import ConfigError, SamTrainError
from sam_train.shards import encode_jpeg, write_shard

NUM_IMAGES = 90


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose masks the simulated annotator copies: slices take milliseconds and need no model."""
    folder = tmp_path_factory.mktemp("source")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(NUM_IMAGES)])
    return folder


def options(source: Path, out: Path, *more: str) -> list[str]:
    return ["stage=assisted_manual", f"source={source}", f"out={out}", "report=false", "privacy=none", "threads=1", *more]


def run_engine(source: Path, out: Path, *more: str) -> Path:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("engine", overrides=options(source, out, *more))
    run_stage(config)
    return out


def files(folder: Path) -> dict[str, bytes]:
    """Return all files except the ledger, which contains times."""
    paths = (path for path in folder.iterdir() if path.is_file() and path.name != "ledger.json")
    return {path.name: path.read_bytes() for path in paths}


def slices_by_process(out: Path) -> list[list[int]]:
    """Return the slices that each process wrote, from its log."""
    logs = sorted((out / ".engine" / "work").glob("*.jsonl"))
    return [[int(line.partition(b",")[0].split()[-1]) for line in log.read_bytes().splitlines()] for log in logs]


class RecordingDisplay:
    """Progress display that records everything it receives."""

    def __init__(self, on_advance: Callable[[], None] | None = None) -> None:
        self.sum, self.slices, self.messages = Counter[str](), dict[int, SliceResult](), list[str]()
        self._on_advance = on_advance

    def start_image(self, origin: str) -> None:
        """Implement `ProgressListener`."""

    def advance(self, *, images: int, masks: int, skipped: int) -> None:
        self.sum.update(images=images, masks=masks, skipped=skipped)
        if images > 0 and self._on_advance:
            self._on_advance()

    def finish_slice(self, result: SliceResult, *, counted: bool) -> None:
        self.slices[result.index] = result

    def log(self, text: str) -> None:
        self.messages.append(text)


def prepare_job(source: Path, out: Path, *more: str) -> EngineJob:
    """Prepare a run folder and return its job."""
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("engine", overrides=options(source, out, *more))
    stage: Stage = build(config.stage)
    job = EngineJob(config=with_absolute_paths(to_plain(config)), provenance=run_provenance(config, stage))
    job.folder.prepare(job.provenance, lambda: open_source(config.source), images_per_shard=config.images_per_shard)
    return job


def test_driver_classes_implement_the_protocol() -> None:
    assert all(isinstance(driver, Driver) for driver in (LocalDriver(), SlurmDriver(tasks=2), RayDriver()))
    assert [LocalDriver(processes=3).num_workers("cpu"), SlurmDriver(tasks=9).num_workers("cpu")] == [3, 9]
    assert SlurmDriver(tasks=9, array_parallelism=4).num_workers("cpu") == 4


def test_deferred_slices_come_last_and_after_a_pause() -> None:
    queue = SliceQueue([1, 2, 3])
    assert queue.pop() == 1
    queue.defer(1)
    assert [queue.pop(), queue.pop(), queue.pop()] == [2, 3, None]
    assert len(queue) == 1
    queue.put_first(3)
    assert queue.pop() == 3


def test_processes_divide_the_cpu_threads() -> None:
    assert [spec.threads for spec in worker_specs("cpu", None, 1)] == [num_cpus()]
    assert [spec.threads for spec in worker_specs("cpu", 3, 2)] == [3, 3]
    assert {spec.threads for spec in worker_specs("cpu", None, 10_000)} == {1}
    with pytest.raises(ConfigError, match=r"driver\.processes is 0"):
        LocalDriver(processes=0)


def test_concurrent_commands_make_each_slice_once(source: Path, tmp_path: Path) -> None:
    expected = files(run_engine(source, tmp_path / "alone", "images_per_shard=1"))
    command = [sys.executable, "-m", "data_engine.engine", *options(source, tmp_path / "both", "images_per_shard=1")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "ab"
    ]
    outputs = [racer.communicate(timeout=300)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    made = slices_by_process(tmp_path / "both")
    assert sorted(index for one in made for index in one) == list(range(NUM_IMAGES)), "each slice once"
    assert len(made) == 2, f"one command made all slices, so they did not run concurrently: {outputs}"
    assert files(tmp_path / "both") == expected
    assert all("90 images, 180 masks in 90 shards" in text for text in outputs)


@pytest.mark.parametrize("which", ["0/3", "2/3"])
def test_slice_option_makes_every_nth_slice(source: Path, tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_engine(source, tmp_path / "out", "images_per_shard=9", f"slice={which}")
    assert sorted(path.name for path in out.glob("*.tar")) == [f"sa_{i:06d}.tar" for i in range(int(which[0]), 10, 3)]
    assert not (out / "ledger.json").exists()
    assert "of 10 slices are missing" in capsys.readouterr().out


def test_slice_options_together_equal_one_command(source: Path, tmp_path: Path) -> None:
    expected = files(run_engine(source, tmp_path / "whole", "images_per_shard=20"))
    for which in ("1/2", "0/2"):
        run_engine(source, tmp_path / "shares", "images_per_shard=20", f"slice={which}")
    assert files(tmp_path / "shares") == expected
    assert (tmp_path / "shares" / "ledger.json").is_file()
    assert not (tmp_path / "shares" / ".engine" / "claims").exists()


@pytest.mark.parametrize("which", ["3", "3/3", "-1/2", "a/b", "0/0"])
def test_rejects_invalid_slice_option(source: Path, tmp_path: Path, which: str) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        run_engine(source, tmp_path / "out", f"slice={which}")


def test_kubernetes_pods_cover_all_slices() -> None:
    """The command of the file is valid, and the slices of its pods are a partition of all slices."""
    job = yaml.safe_load((Path(data_engine.drivers.__file__).parent / "kubernetes.yaml").read_text())["spec"]
    assert job["completionMode"] == "Indexed"
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["sam-engine"]
    made = []
    for pod in range(job["completions"]):
        arguments = [argument.replace("$(JOB_COMPLETION_INDEX)", str(pod)) for argument in container["args"]]
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            config = compose("engine", overrides=arguments)
        made += select_slices(100, config.slice)
    assert sorted(made) == list(range(100))


@pytest.mark.slow
def test_several_processes_equal_one_process(source: Path, tmp_path: Path) -> None:
    expected = files(run_engine(source, tmp_path / "one", "images_per_shard=10"))
    run_engine(source, tmp_path / "three", "images_per_shard=10", "driver.processes=3")
    assert files(tmp_path / "three") == expected
    made = slices_by_process(tmp_path / "three")
    assert sorted(index for one in made for index in one) == list(range(9))
    assert not multiprocessing.active_children()


def kill_all() -> None:
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dead_worker_is_replaced_and_its_slice_retried(source: Path, tmp_path: Path) -> None:
    expected = files(run_engine(source, tmp_path / "one", "images_per_shard=45"))
    left = [kill_all]
    display = RecordingDisplay(on_advance=lambda: left.pop()() if left else None)
    job = prepare_job(source, tmp_path / "out", "images_per_shard=45")
    failed = LocalDriver(processes=2).run(job, [0, 1], display)
    assert failed == {}
    assert files(tmp_path / "out") == expected
    assert len(display.messages) == 2
    assert all("was killed by signal 9 (possibly by the out-of-memory killer)" in text for text in display.messages)
    assert all("is tried once more" in text for text in display.messages)
    assert " at sa_000000.tar/sa_0000" in "".join(display.messages), "the message names the image"
    assert display.sum == {"images": NUM_IMAGES, "masks": 2 * NUM_IMAGES, "skipped": 0}, (
        "the progress of the dead worker is reverted"
    )


@pytest.mark.slow
def test_slice_fails_after_two_worker_deaths(source: Path, tmp_path: Path) -> None:
    display = RecordingDisplay(on_advance=kill_all)
    failed = LocalDriver(processes=2).run(prepare_job(source, tmp_path / "out", "images_per_shard=45"), [0, 1], display)
    assert set(failed) == {0, 1}
    assert "for the second time" in failed[0]
    assert not list((tmp_path / "out").glob("*.tar"))
    assert display.sum == {"images": 0, "masks": 0, "skipped": 0}


@pytest.mark.slow
def test_error_in_a_worker_ends_the_run_with_its_message(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        (images / f"{name}.jpg").write_bytes(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        overrides = options(images, tmp_path / "out", "images_per_shard=1", "driver.processes=2")
        config = compose("engine", overrides=overrides)
    with pytest.raises(SamTrainError, match="truth"):  # the simulated annotator needs ground truth
        run_stage(config)
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit waits only for results
def test_submitit_tasks_equal_one_process(source: Path, tmp_path: Path) -> None:
    """The SLURM driver with processes instead of SLURM; tests/slurm runs a real SLURM."""
    expected = files(run_engine(source, tmp_path / "here", "images_per_shard=20"))
    many = ["driver=slurm", "driver.cluster=local", "driver.tasks=2", "driver.cpus_per_task=1"]
    run_engine(source, tmp_path / "there", "images_per_shard=20", *many)
    assert files(tmp_path / "there") == expected
    assert sorted(index for one in slices_by_process(tmp_path / "there") for index in one) == list(range(5))


def test_missing_slurm_error_states_the_remedy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="driver=local needs no SLURM"):
        run_engine(source, tmp_path / "out", "driver=slurm")


@pytest.mark.parametrize(
    "driver", [lambda: SlurmDriver(tasks=0), lambda: SlurmDriver(tasks=1, cluster="lsf"), lambda: RayDriver(cpus_per_task=0)]
)
def test_rejects_invalid_driver_options(driver: Callable[[], Driver]) -> None:
    with pytest.raises(ConfigError, match=r"driver\."):
        driver()


def test_missing_ray_error_names_the_extra(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]'"):
        run_engine(source, tmp_path / "out", "driver=ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_ray_tasks_equal_one_process(source: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray, which is large: pip install '.[ray]'")
    expected = files(run_engine(source, tmp_path / "here", "images_per_shard=20"))
    try:
        run_engine(source, tmp_path / "there", "images_per_shard=20", "driver=ray")
    finally:
        ray.shutdown()
    assert files(tmp_path / "there") == expected
    assert sorted(index for one in slices_by_process(tmp_path / "there") for index in one) == list(range(5))
