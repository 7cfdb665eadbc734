"""Two processes make the steps of one: the same losses, gradient norms, weights and measures, killed in between or not.

gloo on a CPU. What is compared is equal up to the order of sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dist_runner import SMALL, STEPS, Ranks, rows, run_alone, run_forked, weights
from hydra import compose, initialize_config_dir

from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.export import run as export
from sam_train.structures import Batch
from sam_train.training import SamModule

pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "fsdp2", "fairscale"]
IN_SHARES = "fsdp2 strategy.sharded_checkpoints=true"


def overrides(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"data.val_shards={shards}", f"run_dir={run_dir}", *more]


def check_same(found: Path, expected: Path) -> None:
    ours, theirs = rows(found), rows(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        for name in their:
            if their[name]:
                assert float(our[name]) == pytest.approx(float(their[name]), rel=5e-4, abs=1e-5), (name, their["step"])
    mine, one = weights(found), weights(expected)
    assert mine.keys() == one.keys()
    # The bias of a key moves all scores of a query alike: its gradient is nothing but rounding, which AdamW makes steps of.
    compared = [name for name in one if not name.endswith("k_proj.bias")]
    far = {name: float((mine[name] - one[name]).abs().max()) for name in compared}
    assert {name: d for name, d in far.items() if d > 2e-5} == {}, "rates near 8e-4: AdamW steps as far at once"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one(strategy: str, two: Ranks, shards: Path, alone: Path, tmp_path: Path) -> None:
    answers = two.run(overrides(shards, tmp_path, f"strategy={strategy}"))
    check_same(tmp_path, alone)
    written, one = (json.loads((folder / "metrics.json").read_bytes()) for folder in (tmp_path, alone))
    assert answers[0]["metrics"] == written
    for name in ("val/miou_at_1", "val/miou_at_3", "val/miou_at_5", "val/skipped"):
        assert answers[1]["metrics"][name] == written[name] == pytest.approx(one[name], rel=1e-4), "each image once"


@pytest.mark.parametrize("strategy", [*STRATEGIES, IN_SHARES])
def test_killed_and_gone_on_as_one_and_as_two(strategy: str, two: Ranks, shards: Path, alone: Path, tmp_path: Path) -> None:
    """Killed as two in step 3, as one in step 5 and told to leave as two in between: each goes on at a checkpoint."""
    chosen = overrides(shards, tmp_path, *f"strategy={strategy}".split())
    assert two.run(chosen, kill_at=3) == [{"killed": True}] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", killed_at(4))
        with pytest.raises(KilledError):
            run_alone([*chosen, "checkpoint_every_n_steps=1"])
    first, second = two.run(chosen, ask_at=4, ask_rank=1)
    assert "preempted after step 5" in first["preempted"]
    assert (first["is_rank_zero"], second["is_rank_zero"]) == (True, False)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    folders = [path.name for path in (tmp_path / "checkpoints").glob("step-*")]
    assert [name[:7] for name in folders] == (["step-5-"] if strategy == IN_SHARES else []), "those before are gone"
    two.run(chosen)
    check_same(tmp_path, alone)
    assert json.loads((tmp_path / "metrics.json").read_bytes())["steps"] == STEPS


def to_file(options: list[str]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        export(compose("export", overrides=options))


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed_at(step: int) -> Callable[..., None]:
    whole = SamModule.training_step

    def until(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == step:
            raise KilledError
        whole(self, batch, batch_idx)

    return until


def test_the_running_mean_of_two_is_that_of_one(two: Ranks, shards: Path, tmp_path: Path) -> None:
    chosen = ["training.ema_decay=0.5", "trainer.val_check_interval=3"]
    run_forked(overrides(shards, tmp_path / "one", *chosen), tmp_path / "said")
    for strategy in ("ddp", "fsdp2"):
        options = overrides(shards, tmp_path / strategy, *chosen, f"strategy={strategy}")
        assert two.run(options, kill_at=5) == [{"killed": True}] * 2
        two.run(options)
        check_same(tmp_path / strategy, tmp_path / "one")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_muon_of_two_is_that_of_one(strategy: str, two: Ranks, shards: Path, tmp_path: Path) -> None:
    """Matrices are stepped as a whole, whoever holds their shares; killed in between, their momentum goes on."""
    one, chosen = tmp_path / "one", overrides(shards, tmp_path / "two", "optim.muon_lr=3e-3", f"strategy={strategy}")
    run_alone(overrides(shards, one, "optim.muon_lr=3e-3"))
    assert two.run(chosen, kill_at=3) == [{"killed": True}] * 2
    two.run(chosen)
    check_same(tmp_path / "two", one)


def test_a_checkpoint_in_shares_is_exported_as_one_file_would_be(two: Ranks, shards: Path, tmp_path: Path) -> None:
    """Of a run that did not come to its end: the running mean at its last checkpoint."""
    for name, strategy in (("shares", IN_SHARES), ("one", "fsdp2")):
        options = ["training.ema_decay=0.5", "checkpoint_every_n_steps=1", *f"strategy={strategy}".split()]
        assert two.run(overrides(shards, tmp_path / name, *options), kill_at=4) == [{"killed": True}] * 2
        for kind in ("pt", "pth"):
            to_file([f"checkpoint={tmp_path / name}", f"out={tmp_path / name}", f"format={kind}"])
    assert (tmp_path / "shares" / "checkpoints" / "last.ckpt").stat().st_size < 200_000, "no weights in it"
    checkpoint = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    expected = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    expected |= checkpoint["callbacks"]["WeightEMA"]["means"]
    for file in ("one/model.pt", "one/model.pth", "shares/model.pt", "shares/model.pth"):
        found = torch.load(tmp_path / file, weights_only=True)
        state = found["model"] if file.endswith(".pt") else found
        assert state.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(state[name], expected[name])] == [], file
    assert torch.load(tmp_path / "shares" / "model.pt", weights_only=True)["provenance"]["steps"] == 4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision(strategy: str, two: Ranks, shards: Path, alone: Path, tmp_path: Path) -> None:
    """bf16-mixed on a CPU: near the losses of float32, and it ends."""
    two.run(overrides(shards, tmp_path, f"strategy={strategy}", "trainer.precision=bf16-mixed", "trainer.max_steps=2"))
    expected = [float(row["train/loss"]) for row in rows(alone)[:2]]
    assert [float(row["train/loss"]) for row in rows(tmp_path)[:2]] == pytest.approx(expected, rel=0.05)


def test_images_that_cannot_be_dealt_out_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.images_per_step=4 cannot be split evenly over 3 devices: give a multiple of 3"):
        run_alone(overrides(shards, tmp_path, "trainer.devices=3"))


def test_batch_norms_that_each_device_would_learn_alone_are_refused(shards: Path, tmp_path: Path) -> None:
    small = ["model=mobile_sam", "model.freeze_batch_norm=false", "model.image_size=64", "trainer.devices=2"]
    with pytest.raises(ConfigError, match="batch norms would take their means from each device's own share"):
        run_alone(overrides(shards, tmp_path, *small))


def test_strategies_of_lightning_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give strategy= a name of configs/strategy"):
        run_alone(overrides(shards, tmp_path, "+trainer.strategy=ddp"))
