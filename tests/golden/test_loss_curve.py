"""The first eight steps of a tiny model on four synthetic scenes have the same losses as recorded, within 1e-4.

CPU, float32, one thread. A change that is meant to keep the numbers (a refactor, a faster kernel) must keep this curve. One
that is meant to move them renews it, and says so in its commit:

    RENEW_LOSS_CURVE=1 python -m pytest tests/golden
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_sam
from torch import Tensor

from sam_train.data.collate import collate
from sam_train.data.synthetic import compose_scene
from sam_train.data.transforms import TrainingSample
from sam_train.losses import SamLoss
from sam_train.optim import OptimizerFactory
from sam_train.prompts import PromptSimulator
from sam_train.structures import Batch
from sam_train.training import SamModule
from sam_train.training.step_metrics import ReducedStepMetrics

CURVE = Path(__file__).with_name("loss_curve.json")
SIZE, STEPS, MASKS_PER_SCENE = 64, 8, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The order of a sum is the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stepping(SamModule):
    """The step with an optimiser of our own in place of a trainer."""

    def start(self) -> None:
        self.optimizer, self.schedule = self.optimizer_factory.build(self.model, STEPS)
        self.losses: list[float] = []

    @property
    def global_step(self) -> int:
        return len(self.losses)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self.optimizer

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)

    def lr_schedulers(self) -> Any:
        return self.schedule

    def _log_step(self, sums: ReducedStepMetrics, gradient_norm: Tensor) -> None:
        self.losses.append(float(sums.metrics()["loss"]))


def scenes() -> Batch:
    samples = []
    for seed in range(4):
        scene = compose_scene(seed, height=SIZE, width=SIZE)
        masks = scene.masks[:MASKS_PER_SCENE]
        samples.append(TrainingSample.from_masks(f"s{seed}", scene.image, masks))
    return collate(samples).unpack()


def curve() -> list[float]:
    torch.manual_seed(0)
    wider = {"embed_dim": 32, "prompt_dim": 32, "decoder_mlp_dim": 64, "decoder_heads": 4}
    model = small_sam(image_size=SIZE, patch_size=8, window_size=3, stem="conv", **wider)
    module = Stepping(
        model,
        PromptSimulator(num_corrections=2, num_mask_only_rounds=2),
        SamLoss(),
        OptimizerFactory(lr=1e-3, warmup_steps=2, schedule="cosine"),
        gradient_clip=1.0,
        seed=0,
    )
    module.start()
    batch = scenes()
    for step in range(STEPS):
        module.training_step(batch, step)
    return module.losses


def test_loss_curve_is_unchanged() -> None:
    losses = curve()
    if os.environ.get("RENEW_LOSS_CURVE"):
        CURVE.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    expected = json.loads(CURVE.read_text())["losses"]
    assert len(expected) == STEPS
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
