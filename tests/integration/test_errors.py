"""A user error ends a command with a non-zero exit code and one message with the remedy: no traceback, no partial output file."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import make_sample
from omegaconf import OmegaConf

import data_engine.engine
import sam_train.train
from data_engine import commands as engine_commands
from sam_train.checkpoint import save_checkpoint
from sam_train.cli import commands as train_commands
from sam_train.config import build, config_dir
from sam_train.errors import ConfigError, exit_with_message
from sam_train.shards import write_shard

COMMANDS: dict[str, Callable[[], object]] = {
    "sam-train": train_commands.train,
    "sam-evaluate": train_commands.evaluate,
    "sam-engine": engine_commands.engine,
    "sam-cycle": engine_commands.cycle,
    "sam-data": train_commands.data,
    "sam-report": engine_commands.report,
}
TRAIN = (
    "sam-train model=vit_nano wandb.enabled=false ~callbacks trainer.accelerator=cpu trainer.max_steps=2 threads=1"
    " +trainer.enable_progress_bar=false run_dir={tmp}/run"
)
TRAINABLE = f"{TRAIN} data.shards={{world}}/shards"
EVALUATE = "sam-evaluate checkpoint={world}/model.pt shards={world}/shards"
ENGINE = "sam-engine stage=assisted_manual source={world}/shards out={tmp}/out privacy=none"
CYCLE = "sam-cycle run_dir={tmp}/run corpus.ground_truth={world}/shards corpus.heldout={world}/heldout"
ONE_STAGE = "stages=[{{stage:assisted_manual,first_image:0,num_images:1}}]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards (valid, truncated, with an invalid mask), checkpoints, and files and folders at unexpected paths."""
    root = tmp_path_factory.mktemp("world")
    write_shard(root / "shards" / "sa_000000.tar", [make_sample(index) for index in range(3)])
    write_shard(root / "heldout" / "sa_000000.tar", [make_sample(index, height=64, width=40) for index in range(10, 12)])
    for name in ("truncated", "broken"):
        shutil.copytree(root / "shards", root / name)
    tar_bytes = (root / "shards" / "sa_000000.tar").read_bytes()
    (root / "truncated" / "sa_000000.tar").write_bytes(tar_bytes[: len(tar_bytes) // 2])
    (root / "broken" / "sa_000000.tar").write_bytes(re.sub(rb'(?<="counts":").{4}', b"!!!!", tar_bytes))
    config = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "model" / "vit_nano.yaml"))
    save_checkpoint(root / "model.pt", build(config), config, {})
    (root / "half.pt").write_bytes((root / "model.pt").read_bytes()[:5000])
    (root / "text.pt").write_text("no model at all\n")
    (root / "file").write_text("in the way\n")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def fails(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail, and return its stderr."""

    def run(line: str) -> str:
        name, *arguments = line.format(world=world, tmp=tmp_path).split()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            COMMANDS[name]()
        message = capsys.readouterr().err
        assert exit_.value.code not in (0, None)
        assert "Traceback" not in message
        assert 'File "' not in message
        return message

    return run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (TRAIN + " data.sharsd=x", ["sam-train has no key or group 'data.sharsd': did you mean data.shards"]),
        (TRAIN + " sharsd=x", ["sam-train has no key or group 'sharsd': did you mean data.shards"]),
        (TRAIN + " experimnt=nuclei", ["'experimnt': did you mean experiment?"]),
        (
            TRAIN.replace("vit_nano", "vit_nanno"),
            ["model=vit_nanno does not exist: did you mean vit_nano", "options of model: mobile_sam"],
        ),
        (
            "sam-engine stage=by_hand source={world} out={tmp}/o",
            ["stage=by_hand does not exist", "assisted_manual, fully_automatic"],
        ),
        ("sam-cycle experiment=quickstat", ["experiment=quickstat does not exist: did you mean quickstart?"]),
        (
            "sam-train experiment=quickstart",
            ["experiment=quickstart is an experiment of sam-cycle: sam-cycle experiment=quickstart"],
        ),
        ("sam-train plna", ["sam-train has no sub-command 'plna': did you mean plan?"]),
        ("sam-cycle ledgr run={tmp}", ["did you mean ledger? its sub-commands are step, rollback, ledger, ablation"]),
        ("sam-cycle ledger rum={tmp}", ["did you mean run? expected run=... [image=...] [out=...]"]),
        ("sam-cycle ledger run={tmp}/none", ["none: no such file or folder: give the folder of the cycle"]),
        ("sam-cycle rollback run={tmp} step=a because=b", ["because: renamed to reason"]),
        ("sam-train --versoin", ["sam-train has no flag '--versoin': did you mean --version?"]),
        ("sam-train --help modl", ["sam-train has no group 'modl': did you mean model?"]),
        ("sam-train losses.loser_weight=1", ["losses.loser_weight: renamed to losses.all_candidates_weight"]),
        ("sam-evaluate shards={world}/shards", ["sam-evaluate needs checkpoint=FILE"]),
        ("sam-evaluate checkpoint={tmp}/a,{tmp}/b", ["is a list of values: add -m"]),
        ("sam-data imprt", ["invalid choice: 'imprt'", "did you mean import?"]),
        ("sam-data import cocoo --out x", ["did you mean coco?"]),
        ("sam-data validate {world}/shards --worker 2", ["did you mean --workers?"]),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(fails: Callable[..., str], line: str, expected: list[str]) -> None:
    message = fails(line)
    assert [words for words in expected if words not in message] == []
    assert len(message.splitlines()) < 40  # a line for each experiment that there is, and no traceback


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # a checkpoint that is not there, or none
        (EVALUATE.replace("model.pt", "no.pt"), "checkpoint={world}/no.pt: no such file or folder: give the model.pt of a run"),
        (EVALUATE.replace("model.pt", "text.pt"), "text.pt is not a checkpoint"),
        (EVALUATE.replace("model.pt", "half.pt"), "give a run (its folder, model.pt or .ckpt)"),
        (EVALUATE.replace("/model.pt", "/empty"), "the folder {world}/empty holds no weights: give a run"),
        (ENGINE + " checkpoint={world}/text.pt", "give a run (its folder, model.pt or .ckpt)"),
        (ENGINE.replace("assisted_manual", "fully_automatic"), "stage fully_automatic needs a model: add checkpoint=FILE"),
        (TRAINABLE + " init_checkpoint={world}/no.pt", "init_checkpoint={world}/no.pt: no such file or folder: give"),
        (TRAINABLE + " init_checkpoint={world}/text.pt", "give a run (its folder, model.pt or .ckpt)"),
        (
            TRAINABLE + " init_checkpoint={world}/model.pt model.embed_dim=64",
            "embed_dim is 32 in the checkpoint and 64 here; leave out model=vit_nano model.embed_dim=64 to train",
        ),
        # sources and shards
        (ENGINE.replace("{world}/shards", "{world}/empty"), "empty' is empty: expected a folder of images"),
        (
            ENGINE.replace("{world}/shards", "{world}/nowhere"),
            "source={world}/nowhere: no such file or folder: give a folder, a glob",
        ),
        (
            ENGINE.replace("{world}/shards", "{world}/truncated"),
            "the file is truncated, corrupt or not a tar: write or download it again",
        ),
        (ENGINE.replace("{world}/shards", "{world}/broken"), "(key sa_000000, field segmentation.counts)"),
        (TRAIN, "data.shards is empty, and so is data.sources: give data.shards="),
        (TRAIN + " data.shards={world}/nowhere", "data.shards={world}/nowhere: no such file or folder: give a folder, a glob"),
        (TRAIN + " data.shards={world}/empty", "no shard matches '{world}/empty': expected"),
        (TRAIN + " data.shards={world}/truncated", "the file is truncated, corrupt or not a tar: write or download it again"),
        (TRAIN + " data.shards={world}/broken", "3 samples in a row are unusable (bad_counts 3 x)"),
        (EVALUATE.replace("{world}/shards", "{world}/truncated"), "the file is truncated, corrupt or not a tar"),
        (EVALUATE.replace("{world}/shards", "{world}/empty"), "no shard matches '{world}/empty': expected"),
        # places
        (ENGINE.replace("{tmp}/out", "{world}/file"), "a file exists where a folder is expected: choose another path"),
        (ENGINE.replace("{tmp}/out", "{world}/file/out"), "a file exists where a folder is expected: choose another path"),
        (ENGINE.replace("{tmp}/out", "{world}/shards"), "tars that this stage did not write: choose another out="),
        (TRAINABLE.replace("{tmp}/run", "{world}/file"), "a file exists where a folder is expected: choose another path"),
        (CYCLE.replace("{tmp}/run", "{world}/file") + " " + ONE_STAGE, "a file exists where a folder is expected"),
        (EVALUATE + " out={world}/empty", "a folder exists where a file is expected: choose another path"),
        ("sam-report run={world}/empty", "has no config.yaml: give the folder that sam-cycle wrote"),
        # values
        (TRAINABLE + " trainer.accelerator=banana", "invalid accelerator name: `accelerator='banana'`. Available names are"),
        (TRAINABLE + " trainer.precision=7", "Allowed precision values"),
        (TRAINABLE + " +trainer.banana=1", "unexpected keyword argument 'banana'"),
        (TRAINABLE + " trainer.max_steps=0", "set it to the number of steps"),
        (TRAINABLE + " trainer.max_steps=lots", "set it to the number of steps"),
        (TRAINABLE + " training.loss_resolution=gird", "loss_resolution must be 'grid' or 'full', got 'gird'"),
        (TRAINABLE + " prompts.num_mask_only_rounds=7", "num_mask_only_rounds must be 0, 1 or 2, got 7"),
        (TRAINABLE + " data.images_per_step=0", "expected an integer of at least 1"),
        (TRAINABLE + " model.patch_size=7", "image_size 64 must be a multiple of patch_size 7"),
        (EVALUATE + " device=banana", "device=banana is unavailable on this machine"),
        (ENGINE + " images_per_shard=0", "images_per_shard is 0: expected a whole number of at least 1"),
        (ENGINE + " images_per_shard=null", "images_per_shard is None: expected"),
        (ENGINE + " first_image=-1", "first_image is -1: expected a whole number of at least 0"),
        (ENGINE + " num_images=few", "num_images is few: expected a whole number of at least 1"),
        (ENGINE + " first_image=3", "has 3 images: first_image=3 is out of range"),
        (ENGINE + " stage.annotator.max_clicks=0", "max_clicks 0 must be at least 1"),
        # cycles
        ("sam-cycle", "a cycle needs stages: try sam-cycle experiment=quickstart"),
        ("sam-cycle " + ONE_STAGE, "a cycle needs corpus.ground_truth=SHARDS"),
        (CYCLE + " stages=[{{stage:by_hand,first_image:0,num_images:1}}]", "expected one of assisted_manual, fully_automatic"),
        (CYCLE + " stages=[{{stage:assisted_manual,num_images:9}}]", "is to annotate images 0 to 8, but the corpus has 3"),
        (CYCLE.replace("/heldout", "/shards") + " " + ONE_STAGE, "is used for training and held out"),
    ],
)
def test_prints_one_message_with_the_remedy(
    fails: Callable[..., str], world: Path, tmp_path: Path, line: str, expected: str
) -> None:
    message = fails(line)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected.format(world=world) in message
    assert list(tmp_path.rglob("*.tar")) == []
    assert list(tmp_path.rglob("*.tmp")) == []
    assert not (tmp_path / "run" / "model.pt").exists()


def test_import_reports_a_missing_folder(fails: Callable[..., str], tmp_path: Path) -> None:
    message = fails("sam-data import label_maps --images {tmp}/no --labels {tmp}/no --out {tmp}/out")
    assert message.endswith(f"error: no such folder: {tmp_path / 'no'}\n")  # after the progress bar


@pytest.mark.slow
def test_reports_an_error_in_a_loader_process(fails: Callable[..., str]) -> None:
    message = fails(TRAIN + " data.shards={world}/broken data.num_workers=1")
    assert message == "error: 3 samples in a row are unusable (bad_counts 3 x): check the shards and the filters of data.*\n"


def test_reports_a_truncated_checkpoint_on_resume(fails: Callable[..., str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(world / "half.pt", tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert f"last.ckpt is truncated or corrupt: remove the folder {tmp_path / 'run'} to start again" in fails(TRAINABLE)


def test_rejects_the_run_folder_of_another_config(
    fails: Callable[..., str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = TRAINABLE.format(world=world, tmp=tmp_path).split()
    monkeypatch.setattr(sys, "argv", [*line, "checkpoint_every_n_steps=1"])
    sam_train.train.main()
    message = fails(TRAINABLE + " model.depth=3 model.global_attn_indexes=[2] optim.lr=1")
    assert (
        "holds a run with another model.depth (was 2, now 3), model.global_attn_indexes (was [1], now [2]), optim.lr (was"
        in message
    )
    monkeypatch.setattr(sys, "argv", [*line, "trainer.max_steps=3"])
    sam_train.train.main()  # a longer run with the same config resumes


def test_rejects_shards_of_another_config(
    fails: Callable[..., str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ENGINE.format(world=world, tmp=tmp_path).split())
    data_engine.engine.main()
    message = fails(ENGINE + " stage.annotator.max_masks=1")
    assert "holds shards made with another config: choose another out=" in message


@contextmanager
def full_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at `folder`; if mounting is not allowed, limit the size of every file."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)  # noqa: S607
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ, so a write raises OSError
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (ENGINE.replace("{tmp}/out", "{tmp}/small/out"), 8192),
        (TRAINABLE.replace("{tmp}/run", "{tmp}/small/run"), 100_000),
        (TRAINABLE.replace("{tmp}/run", "{tmp}/small/run") + " checkpoint_every_n_steps=1", 100_000),
    ],
    ids=["shard", "model.pt", "last.ckpt"],
)
def test_reports_a_full_disk(fails: Callable[..., str], tmp_path: Path, line: str, size: int) -> None:
    with full_disk(tmp_path / "small", size):
        message = fails(line)
        written = [path.name for path in (tmp_path / "small").rglob("*")]
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "run the same command again: it keeps its finished results" in message
    assert [name for name in written if name.endswith((".tar", ".pt", ".ckpt", ".tmp", "metrics.json"))] == []


def test_reports_missing_permissions(fails: Callable[..., str], world: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read every file")
    secret = tmp_path / "secret"
    shutil.copytree(world / "shards", secret)
    (secret / "sa_000000.tar").chmod(0)
    message = fails(ENGINE.replace("{world}/shards", "{tmp}/secret"))
    assert message.startswith("error: ")
    assert "ermission" in message


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ConfigError("no such thing"), "error: no such thing\n", 1),
        (PermissionError(13, "Permission denied", "a"), "error: [Errno 13] Permission denied: 'a': change its permissions", 1),
        (KeyboardInterrupt(), "interrupted: run the same command again to resume\n", 130),
    ],
)
def test_exit_codes_and_messages(error: BaseException, message: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    @exit_with_message
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == code
    assert capsys.readouterr().err.startswith(message)
