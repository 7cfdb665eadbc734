"""Throughput logging, the NaN guard, the EMA of the weights, and the debug configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_sample
from dist_runner import SMALL, STEPS, rows, run_in_process, weights

from sam_train.errors import TrainingError
from sam_train.losses import SamLoss
from sam_train.shards import write_shard
from sam_train.structures import Batch
from sam_train.training import SamModule
from sam_train.training.ema import WeightEMA


class KilledError(BaseException):
    """Simulates SIGKILL: no `except Exception` catches it."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(i, num_masks=1 + i % 3) for i in range(7)])
    return folder


def overrides(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return [*SMALL, f"data.shards={shards}", f"run_dir={run_dir}", *more]


def test_nan_loss_ends_the_run_and_names_the_batch(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, keys = SamModule.training_step, []

    def step(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 3:
            self.loss = SamLoss(focal_weight=float("nan"))
            keys.extend(batch.keys)
        original(self, batch, batch_idx)

    monkeypatch.setattr(SamModule, "training_step", step)
    with pytest.raises(TrainingError, match=r"step 3: a loss is NaN or inf, in a batch of sa_00000\d, .*lower optim.lr"):
        run_in_process(overrides(shards, tmp_path))
    document = json.loads((tmp_path / "nan_report_0.json").read_bytes())
    assert (document["step"], document["keys"]) == (3, keys)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint["state_dict"].values())


def test_ema_follows_its_formula_and_resumes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    update = WeightEMA.update

    def updated(self: WeightEMA, module: SamModule) -> None:  # type: ignore[override]
        seen.append({name: p.detach().clone() for name, p in module.model.named_parameters()})
        update(self, module)

    start: list[dict[str, torch.Tensor]] = []
    begin = WeightEMA.on_train_start

    def begun(self: WeightEMA, trainer: object, module: SamModule) -> None:  # type: ignore[override]
        start.append({name: p.detach().clone() for name, p in module.model.named_parameters()})
        begin(self, trainer, module)  # type: ignore[arg-type]

    monkeypatch.setattr(WeightEMA, "update", updated)
    monkeypatch.setattr(WeightEMA, "on_train_start", begun)
    chosen = ["training.ema_decay=0.7", f"data.val_shards={shards}", "trainer.val_check_interval=3", "monitor=null"]
    run_in_process(overrides(shards, tmp_path / "uninterrupted", *chosen))
    name = "mask_decoder.iou_token.weight"
    mean = start[0][name]
    for after in seen:
        mean = 0.7 * mean + 0.3 * after[name]
    assert len(seen) == STEPS
    assert torch.allclose(weights(tmp_path / "uninterrupted")[name], mean, atol=1e-7)
    assert not torch.equal(seen[-1][name], mean)

    def killed(self: SamModule, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 5:
            raise KilledError
        original(self, batch, batch_idx)

    original = SamModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamModule, "training_step", killed)
        with pytest.raises(KilledError):
            run_in_process(overrides(shards, tmp_path / "killed", *chosen))
    run_in_process(overrides(shards, tmp_path / "killed", *chosen))
    expected, found = weights(tmp_path / "uninterrupted"), weights(tmp_path / "killed")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_logs_throughput_at_the_logging_interval(shards: Path, tmp_path: Path) -> None:
    small = [value for value in SMALL if value != "~callbacks"]
    options = ["callbacks.mask_images=null", "callbacks.progress=null", "callbacks.lr=null", "trainer.log_every_n_steps=3"]
    run_in_process([*small, f"data.shards={shards}", f"run_dir={tmp_path}", *options])
    logged = [row for row in rows(tmp_path) if row["speed/images_per_second"]]
    assert len(logged) == 2
    for row in logged:
        assert float(row["speed/images_per_second"]) > 0
        assert float(row["speed/masks_per_second"]) > float(row["speed/images_per_second"])
        assert 0 <= float(row["speed/data_wait_fraction"]) < 1
        assert float(row["speed/memory_gb"]) > 0.05


@pytest.mark.parametrize("name", ["one_batch", "overfit", "profiler"])
def test_debug_configs_run(name: str, shards: Path, tmp_path: Path) -> None:
    steps = ["trainer.max_steps=4"] if name == "overfit" else []
    small = [value for value in SMALL if "max_steps" not in value]
    metrics = run_in_process([*small, f"debug={name}", f"data.shards={shards}", f"run_dir={tmp_path}", *steps])
    assert metrics["steps"] == {"one_batch": 1, "overfit": 4, "profiler": 20}[name]
