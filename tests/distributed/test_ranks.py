"""Two processes make the steps of one: the same losses, gradient norms, weights and measures, killed in between or not.

gloo on a CPU. What is compared is equal up to the order of sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import SMALL, STEPS, Ranks, rows, run_alone, weights

from sam_train.errors import ConfigError
from sam_train.structures import Batch
from sam_train.training import SamModule

pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "fsdp2", "fairscale"]


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_and_gone_on_as_one_and_as_two(strategy: str, two: Ranks, shards: Path, alone: Path, tmp_path: Path) -> None:
    """Killed as two in step 3, as one in step 5 and told to leave as two in between: each goes on at a checkpoint."""
    chosen = overrides(shards, tmp_path, f"strategy={strategy}")
    assert two.run(chosen, kill_at=3) == [{"killed": True}] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", killed_at(4))
        with pytest.raises(KilledError):
            run_alone([*chosen, "checkpoint_every_n_steps=1"])
    first, second = two.run(chosen, ask_at=4, ask_rank=1)
    assert "asked to leave after step 5" in first["preempted"]
    assert (first["is_first"], second["is_first"]) == (True, False)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    two.run(chosen)
    check_same(tmp_path, alone)
    assert json.loads((tmp_path / "metrics.json").read_bytes())["steps"] == STEPS


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def killed_at(step: int) -> Callable[..., None]:
    whole = SamModule.training_step

    def until(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == step:
            raise KilledError
        whole(self, batch, batch_idx)

    return until


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_running_mean_of_two_is_that_of_one(strategy: str, two: Ranks, shards: Path, tmp_path: Path) -> None:
    chosen = ["training.ema_decay=0.5", "trainer.val_check_interval=3"]
    run_alone(overrides(shards, tmp_path / "one", *chosen))
    assert two.run(overrides(shards, tmp_path / "two", *chosen, f"strategy={strategy}"), kill_at=5) == [{"killed": True}] * 2
    two.run(overrides(shards, tmp_path / "two", *chosen, f"strategy={strategy}"))
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision(strategy: str, two: Ranks, shards: Path, alone: Path, tmp_path: Path) -> None:
    """bf16-mixed on a CPU: near the losses of float32, and it ends."""
    two.run(overrides(shards, tmp_path, f"strategy={strategy}", "trainer.precision=bf16-mixed", "trainer.max_steps=2"))
    expected = [float(row["train/loss"]) for row in rows(alone)[:2]]
    assert [float(row["train/loss"]) for row in rows(tmp_path)[:2]] == pytest.approx(expected, rel=0.05)


def test_images_that_cannot_be_dealt_out_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.images_per_step=4 cannot be dealt to 3 devices: give a multiple of 3"):
        run_alone(overrides(shards, tmp_path, "trainer.devices=3"))


def test_batch_norms_that_each_device_would_learn_alone_are_refused(shards: Path, tmp_path: Path) -> None:
    small = ["model=mobile_sam", "model.freeze_batch_norm=false", "model.image_size=64", "trainer.devices=2"]
    with pytest.raises(ConfigError, match="batch norms would take their means from each device's own share"):
        run_alone(overrides(shards, tmp_path, *small))


def test_strategies_of_lightning_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give strategy= a name of configs/strategy"):
        run_alone(overrides(shards, tmp_path, "+trainer.strategy=ddp"))
