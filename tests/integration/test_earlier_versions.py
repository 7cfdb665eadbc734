"""What version 0.1.0 wrote before names were changed still opens: shards, checkpoints, training runs, loops, annotation stores.

`tests/data/written_by_0_1.tar.xz` was written by that version: `corpus/` (3 scenes), `train_run/` (2 steps with an EMA),
`cycle_run/` (the smoke loop with a smaller model) and `store/` (3 images by the simulated annotator). Weights were rounded to
make the file small.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from dist_runner import rows
from hydra import compose, initialize_config_dir

from data_engine import commands
from sam_train import load_checkpoint
from sam_train.cli.commands import EVALUATE
from sam_train.config import config_dir, load_stored
from sam_train.shards import expand_shards, iterate_samples
from sam_train.train import train_model

TINY = ["model=vit_nano", "model.embed_dim=16", "model.num_heads=2", "model.prompt_dim=16", "model.decoder_mlp_dim=16"]


@pytest.fixture
def old(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the earlier version wrote, which is also the working directory: paths in it are relative."""
    with tarfile.open(repo_root / "tests" / "data" / "written_by_0_1.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shards_and_checkpoints_open(old: Path) -> None:
    samples = list(iterate_samples(expand_shards("corpus")))
    assert [len(sample.record.masks) for sample in samples] == [16, 11, 6]
    model = load_checkpoint(old / "train_run" / "model.pt")
    assert model.image_size == 64


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the run folder was moved here
def test_a_training_run_resumes_with_its_ema(old: Path) -> None:
    overrides = [
        *TINY,
        *("data.shards=corpus", "data.max_masks=2", "prompts.num_corrections=1", "prompts.num_mask_only_rounds=0"),
        *(
            "wandb.enabled=false",
            "threads=1",
            "trainer.accelerator=cpu",
            "trainer.max_steps=3",
            "checkpoint_every_n_steps=1",
            "trainer.log_every_n_steps=1",
        ),
        *("training.ema_decay=0.9", "losses.all_candidates_weight=0.5", "run_dir=train_run", "name=old"),
        *("~callbacks", "+trainer.enable_progress_bar=false"),
    ]
    (old / "train_run" / "metrics.json").unlink()
    before = torch.load(old / "train_run" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["WeightAverage"]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        metrics = train_model(compose("train", overrides=overrides))
    assert metrics["steps"] == 3
    assert [row["step"] for row in rows(old / "train_run")] == ["2"], "it resumes at the third step"
    after = torch.load(old / "train_run" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["WeightEMA"]
    assert set(before["means"]) == set(after["means"])
    assert all(not torch.equal(after["means"][name], torch.zeros_like(mean)) for name, mean in list(before["means"].items())[:3])


def test_a_finished_loop_is_recognised_reported_and_searched(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_stored(old / "cycle_run" / "config.yaml")["human_mask_weight"] == 7
    commands.REPORT.run(["run=cycle_run", "heldout_images=1"])
    assert "1_assisted_manual" in capsys.readouterr().out
    report = json.loads((old / "cycle_run" / "report.json").read_bytes())
    assert [stage["step"] for stage in report["stages"]] == ["1_assisted_manual", "2_semi_automatic"]
    commands.LEDGER.run(["run=cycle_run", "out=masks.parquet"])
    assert (old / "masks.parquet").is_file()


def test_a_finished_loop_started_again_does_nothing_anew(old: Path) -> None:
    from data_engine.cycle.run_cycle import load_cycle_config, run_cycle
    from data_engine.cycle_folder import CycleFolder

    marks = {path: path.stat().st_mtime_ns for path in old.joinpath("cycle_run").rglob("*") if path.suffix in (".pt", ".tar")}
    run_cycle(load_cycle_config(CycleFolder(Path("cycle_run"))))
    assert {path: path.stat().st_mtime_ns for path in marks if path.name != "model.pt" or "train" in path.parts} == {
        path: time for path, time in marks.items() if path.name != "model.pt" or "train" in path.parts
    }


def test_an_annotation_store_is_summarised_and_exported(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi", reason="needs the extra annotate")
    from data_engine.annotate import command

    for action in ("summary", "export"):
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            command(compose("annotate", overrides=[f"action={action}", "corpus=corpus", "out=store", "privacy=none"]))
    assert "33" in capsys.readouterr().out
    exported = list(iterate_samples(expand_shards("store/shards")))
    assert [len(sample.record.masks) for sample in exported] == [16, 11, 6]


def test_an_old_checkpoint_is_evaluated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        from sam_train.evaluate import command

        command(
            compose(EVALUATE.config, overrides=["checkpoint=cycle_run/model.pt", "shards=corpus", "protocol.masks_per_image=1"])
        )
    assert "miou_at_1" in capsys.readouterr().out
