"""The complete cycle, started by its command: corpus, annotation, training, evaluation, promotion, report.

A cycle that is killed at any moment and started again ends with the same shards, each image once, and a complete report. A new
cycle waits for processes that a killed one has left running.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
import webdataset as wds
from pycocotools import mask as coco_mask

from data_engine.ledger import read_ledger

pytestmark = pytest.mark.slow

STEPS = ("1_assisted_manual", "2_semi_automatic")
IMAGES_PER_STAGE = 4
REPORT_KEYS = [
    "stage",
    "images",
    "masks_per_image",
    "clicks_per_mask",
    "seconds_per_mask",
    "mean_iou",
    "miou_at_1",
    "miou_at_3",
    "miou_at_5",
]
SA_1B_KEYS = {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"}


def start(run_dir: Path) -> subprocess.Popen[str]:
    """Start the cycle in its own process group, with a relative run_dir so that all runs have the same config."""
    command = [sys.executable, "-u", "-m", "data_engine.cycle", "experiment=smoke", f"run_dir={run_dir.name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        cwd=run_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end and return the output. Fail the test with the output if the exit code is not 0."""
    try:
        output = process.communicate(timeout=600)[0]
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    return output


def kill_group(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the cycle and its child processes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@pytest.fixture(scope="module")
def cycle_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "smoke"
    finish(start(run_dir))
    return run_dir


def shards_of(run_dir: Path, step: str) -> list[Path]:
    return sorted((run_dir / step / "shards").glob("*.tar"))


def check_complete(run_dir: Path) -> None:
    """Assert that every image of every stage is in exactly one complete shard, and that all results exist."""
    for step in STEPS:
        shards = shards_of(run_dir, step)
        keys: Counter[str] = Counter()
        for shard in shards:
            with tarfile.open(shard) as tar:
                names = tar.getnames()
            manifest = json.loads(shard.with_name(shard.stem + ".manifest.json").read_bytes())
            assert names == [f"{key}.{extension}" for key in manifest["keys"] for extension in ("jpg", "json")]
            keys.update(manifest["keys"])
        first = STEPS.index(step) * IMAGES_PER_STAGE
        assert keys == {f"syn_0_{index:06d}": 1 for index in range(first, first + IMAGES_PER_STAGE)}
        ledger = json.loads((run_dir / step / "shards" / "ledger.json").read_bytes())
        assert (ledger["shards"], ledger["images"], ledger["skipped"]) == (len(shards), IMAGES_PER_STAGE, {})
        assert ledger["masks"] == read_ledger(run_dir / step / "shards").masks > 0
        for name in ("evaluation.json", "train/metrics.json", "train/model.pt", "train/csv/metrics.csv"):
            assert (run_dir / step / name).is_file(), name
    report = json.loads((run_dir / "report.json").read_bytes())
    assert [row["step"] for row in report["stages"]] == list(STEPS)
    assert [list(row)[: len(REPORT_KEYS)] for row in report["stages"]] == [REPORT_KEYS] * len(STEPS)
    assert [row["images"] for row in report["stages"]] == [IMAGES_PER_STAGE] * len(STEPS)
    assert not [key for row in report["stages"] for key in REPORT_KEYS if row[key] is None]
    assert (run_dir / "report.html").read_text().rstrip().endswith("</html>")


def test_cycle_writes_all_results(cycle_run: Path) -> None:
    check_complete(cycle_run)
    assert list(cycle_run.rglob("*.tmp")) == []
    history = json.loads((cycle_run / "promoted.json").read_bytes())["history"]
    assert [entry["step"] for entry in history] == list(STEPS)
    assert history[0]["promoted"], "the first model is always promoted"


def test_second_stage_uses_the_first_model(cycle_run: Path) -> None:
    provenance = [json.loads((cycle_run / step / "shards" / "engine.json").read_bytes()) for step in STEPS]
    history = json.loads((cycle_run / "promoted.json").read_bytes())["history"]
    assert [entry["checkpoint"] for entry in provenance] == ["", history[0]["sha256"]]
    document = torch.load(cycle_run / STEPS[1] / "train" / "model.pt", weights_only=True)
    assert document["provenance"]["init"] == history[0]["sha256"]


@pytest.mark.parametrize("step", STEPS)
def test_shards_open_with_plain_tools(cycle_run: Path, step: str) -> None:
    annotator = {"1_assisted_manual": {"simulated"}, "2_semi_automatic": {"simulated", "automatic"}}[step]
    ids: Counter[int] = Counter()
    for shard in shards_of(cycle_run, step):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if not name.endswith(".json"):
                    continue
                document = json.load(tar.extractfile(name))  # type: ignore[arg-type]
                assert list(document) == ["image", "annotations"]
                assert list(document["image"]) == ["image_id", "width", "height", "file_name"]
                for annotation in document["annotations"]:
                    assert set(annotation) == SA_1B_KEYS | {"provenance"}
                    pixels = coco_mask.decode(annotation["segmentation"])
                    assert pixels.shape == (document["image"]["height"], document["image"]["width"])
                    assert annotation["area"] == pixels.sum() > 0
                    assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
                    assert annotation["provenance"]["stage"] == step[2:]
                    assert annotation["provenance"]["annotator"] in annotator
                    ids[annotation["id"]] += 1
    assert set(ids.values()) == {1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its files
@pytest.mark.parametrize("step", STEPS)
def test_shards_open_with_webdataset(cycle_run: Path, step: str) -> None:
    urls = [str(shard) for shard in shards_of(cycle_run, step)]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == IMAGES_PER_STAGE
    for sample in samples:
        assert sample["jpg"].shape == (sample["json"]["image"]["height"], sample["json"]["image"]["width"], 3)


@pytest.mark.timeout(2000)  # three kills and four starts
def test_cycle_killed_at_three_random_points_ends_with_the_same_results(cycle_run: Path, tmp_path: Path) -> None:
    """Each kill follows the write of a given file, so that the kill points do not depend on the speed of the machine."""
    run_dir = tmp_path / "smoke"
    rng = random.Random(7)  # noqa: S311
    others = ("report.html", "report.json", "clock.json", "config.yaml", "model.pt")  # rewritten, or written last
    files = [path for path in cycle_run.rglob("*") if path.is_file() and path.name not in others and ".engine" not in path.parts]
    written = sorted(files, key=lambda path: path.stat().st_mtime_ns)
    points = sorted(rng.sample(range(len(written) - 1), 3))
    for point in points:
        process, reached = start(run_dir), run_dir / written[point].relative_to(cycle_run)
        try:
            deadline = time.monotonic() + 600
            while not reached.exists():
                assert process.poll() is None, f"the cycle ended before it wrote {reached}: {process.communicate()[0]}"
                assert time.monotonic() < deadline, f"no {reached}"
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
        finally:
            kill_group(process)
            process.communicate()
    finish(start(run_dir))
    check_complete(run_dir)
    for name in ("promoted.json", *(f"{step}/evaluation.json" for step in STEPS)):
        assert (run_dir / name).read_bytes() == (cycle_run / name).read_bytes(), name
    for step in STEPS:
        assert [p.name for p in shards_of(run_dir, step)] == [p.name for p in shards_of(cycle_run, step)]
        for actual, expected in zip(shards_of(run_dir, step), shards_of(cycle_run, step), strict=True):
            assert actual.read_bytes() == expected.read_bytes()
        ours, theirs = (torch.load(folder / step / "train" / "model.pt", weights_only=True) for folder in (run_dir, cycle_run))
        assert all(torch.equal(tensor, ours["model"][name]) for name, tensor in theirs["model"].items())
    stages = [json.loads((folder / "report.json").read_bytes())["stages"] for folder in (run_dir, cycle_run)]
    assert stages[0] == stages[1]


def test_waits_for_processes_of_a_killed_cycle(tmp_path: Path) -> None:
    run_dir = tmp_path / "smoke"
    killed = start(run_dir)
    again = None
    try:
        orphan = wait_for_child(killed)
        orphan.suspend()
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        again = start(run_dir)
        assert again.stdout is not None
        line = again.stdout.readline()
        assert re.search("in use by another cycle or by a process that a killed cycle left running: waiting", line), line
        time.sleep(0.5)
        assert psutil.Process(again.pid).children() == []
        orphan.resume()
        line = again.stdout.readline()
        assert line.startswith("corpus: "), line
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    finally:
        for process in (killed, again):
            if process is not None:
                kill_group(process)
                process.communicate()


def wait_for_child(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            if "sam_train.data.synthetic" in child.cmdline():
                return child
        time.sleep(0.01)
    pytest.fail("the cycle started no step")
