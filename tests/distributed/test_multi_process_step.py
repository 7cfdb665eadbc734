"""Two processes train like one: equal losses, gradient norms, weights and validation metrics, also if killed in between.

gloo on a CPU. Values are equal up to the order of sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dist_runner import SMALL, STEPS, RankProcesses, rows, run_forked, run_in_process, weights
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.export import run as export
from sam_train.structures import Batch
from sam_train.training import SamModule

pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "fsdp2", "fairscale"]
SHARDED_CHECKPOINTS = "fsdp2 strategy.sharded_checkpoints=true"


def overrides(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"data.val_shards={shards}", f"run_dir={run_dir}", *more]


def check_same(found: Path, expected: Path) -> None:
    ours, theirs = rows(found), rows(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name in their:
            if their[name]:
                assert float(our[name]) == pytest.approx(float(their[name]), rel=5e-4, abs=1e-5), (name, their["step"])
    actual, single = weights(found), weights(expected)
    assert actual.keys() == single.keys()
    # The bias of a key shifts all scores of a query equally: its gradient is rounding error, which AdamW amplifies to full steps.
    compared = [name for name in single if not name.endswith("k_proj.bias")]
    differences = {name: float((actual[name] - single[name]).abs().max()) for name in compared}
    assert {name: d for name, d in differences.items() if d > 2e-5} == {}, "a single AdamW step is about 8e-4"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_like_one(
    strategy: str, two_ranks: RankProcesses, shards: Path, single_process_run: Path, tmp_path: Path
) -> None:
    results = two_ranks.run(overrides(shards, tmp_path, f"strategy={strategy}"))
    check_same(tmp_path, single_process_run)
    written, one = (json.loads((folder / "metrics.json").read_bytes()) for folder in (tmp_path, single_process_run))
    assert results[0]["metrics"] == written
    for name in ("val/miou_at_1", "val/miou_at_3", "val/miou_at_5", "val/skipped"):
        assert results[1]["metrics"][name] == written[name] == pytest.approx(one[name], rel=1e-4), "each image is counted once"


@pytest.mark.parametrize("strategy", [*STRATEGIES, SHARDED_CHECKPOINTS])
def test_resumes_with_other_numbers_of_processes(
    strategy: str, two_ranks: RankProcesses, shards: Path, single_process_run: Path, tmp_path: Path
) -> None:
    """Two processes are killed in step 3, one in step 4, two are preempted after step 5; the run resumes each time."""
    chosen = overrides(shards, tmp_path, *f"strategy={strategy}".split())
    assert two_ranks.run(chosen, kill_at=3) == [{"killed": True}] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", killed_at(4))
        with pytest.raises(KilledError):
            run_in_process([*chosen, "checkpoint_every_n_steps=1"])
    first, second = two_ranks.run(chosen, preempt_at=4, preempt_rank=1)
    assert "preempted after step 5" in first["preempted"]
    assert (first["is_rank_zero"], second["is_rank_zero"]) == (True, False)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    folders = [path.name for path in (tmp_path / "checkpoints").glob("step-*")]
    assert [name[:7] for name in folders] == (["step-5-"] if strategy == SHARDED_CHECKPOINTS else []), (
        "earlier folders are removed"
    )
    two_ranks.run(chosen)
    check_same(tmp_path, single_process_run)
    assert json.loads((tmp_path / "metrics.json").read_bytes())["steps"] == STEPS


def export_to(options: list[str]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        export(compose("export", overrides=options))


class KilledError(BaseException):
    """Simulates SIGKILL: no `except Exception` catches it."""


def killed_at(step: int) -> Callable[..., None]:
    original = SamModule.training_step

    def until(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == step:
            raise KilledError
        original(self, batch, batch_idx)

    return until


def test_ema_of_two_processes_equals_that_of_one(two_ranks: RankProcesses, shards: Path, tmp_path: Path) -> None:
    chosen = ["training.ema_decay=0.5", "trainer.val_check_interval=3"]
    run_forked(overrides(shards, tmp_path / "one", *chosen), tmp_path / "output")
    for strategy in ("ddp", "fsdp2"):
        options = overrides(shards, tmp_path / strategy, *chosen, f"strategy={strategy}")
        assert two_ranks.run(options, kill_at=5) == [{"killed": True}] * 2
        two_ranks.run(options)
        check_same(tmp_path / strategy, tmp_path / "one")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_muon_of_two_processes_equals_that_of_one(strategy: str, two_ranks: RankProcesses, shards: Path, tmp_path: Path) -> None:
    """Muon steps full matrices, however they are sharded; its momentum is restored after a kill."""
    one, chosen = tmp_path / "one", overrides(shards, tmp_path / "two", "optim.muon_lr=3e-3", f"strategy={strategy}")
    run_in_process(overrides(shards, one, "optim.muon_lr=3e-3"))
    assert two_ranks.run(chosen, kill_at=3) == [{"killed": True}] * 2
    two_ranks.run(chosen)
    check_same(tmp_path / "two", one)


def test_exports_a_sharded_checkpoint_like_a_single_file(two_ranks: RankProcesses, shards: Path, tmp_path: Path) -> None:
    """The run is killed before its end; the export holds the EMA at its last checkpoint."""
    for name, strategy in (("sharded", SHARDED_CHECKPOINTS), ("one", "fsdp2")):
        options = ["training.ema_decay=0.5", "checkpoint_every_n_steps=1", *f"strategy={strategy}".split()]
        assert two_ranks.run(overrides(shards, tmp_path / name, *options), kill_at=4) == [{"killed": True}] * 2
        for kind in ("pt", "safetensors"):
            export_to([f"checkpoint={tmp_path / name}", f"out={tmp_path / name}", f"format={kind}"])
    assert (tmp_path / "sharded" / "checkpoints" / "last.ckpt").stat().st_size < 200_000, "it holds no tensors"
    checkpoint = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    expected = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    expected |= checkpoint["callbacks"]["WeightEMA"]["means"]
    for file in ("one/model.pt", "one/model.safetensors", "sharded/model.pt", "sharded/model.safetensors"):
        path = tmp_path / file
        state = torch.load(path, weights_only=True)["model"] if path.suffix == ".pt" else load_file(path)
        assert state.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(state[name], expected[name])] == [], file
    assert torch.load(tmp_path / "sharded" / "model.pt", weights_only=True)["provenance"]["steps"] == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16_losses_are_near_those_of_float32(
    strategy: str, two_ranks: RankProcesses, shards: Path, single_process_run: Path, tmp_path: Path
) -> None:
    """bf16-mixed on a CPU."""
    two_ranks.run(overrides(shards, tmp_path, f"strategy={strategy}", "trainer.precision=bf16-mixed", "trainer.max_steps=2"))
    expected = [float(row["train/loss"]) for row in rows(single_process_run) if row["train/loss"]][:2]
    assert [float(row["train/loss"]) for row in rows(tmp_path) if row["train/loss"]][:2] == pytest.approx(expected, rel=0.05)


def test_rejects_a_number_of_devices_that_does_not_divide_the_step(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.images_per_step=4 cannot be split evenly over 3 devices: give a multiple of 3"):
        run_in_process(overrides(shards, tmp_path, "trainer.devices=3"))


def test_rejects_trained_batch_norms_on_several_devices(shards: Path, tmp_path: Path) -> None:
    small = ["model=mobile_sam", "model.freeze_batch_norm=false", "model.image_size=64", "trainer.devices=2"]
    with pytest.raises(ConfigError, match="batch norms would compute statistics of each device's images only"):
        run_in_process(overrides(shards, tmp_path, *small))


def test_rejects_strategies_of_lightning(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set strategy= to a name of configs/strategy"):
        run_in_process(overrides(shards, tmp_path, "+trainer.strategy=ddp"))
