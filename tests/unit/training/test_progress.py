"""Progress without a terminal is plain lines, on a terminal a bar; both name total and time left."""

from __future__ import annotations

import io
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console

from sam_train.training.progress import RunProgress, format_seconds


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(console: Console, *, steps: int = 6, validate_at: int = 3) -> None:
    """Six steps of two seconds with four images each, a validation of ten seconds, a line at every second step."""
    clock = Clock()
    progress = RunProgress(console, clock)
    trainer = Mock(
        spec=Trainer,
        global_step=0,
        max_steps=steps,
        log_every_n_steps=2,
        is_global_zero=True,
        sanity_checking=False,
        callback_metrics={"train/loss": 1.5, "train/iou_last_round": 0.25, "val/miou_at_1": 0.5},
        datamodule=SimpleNamespace(images_per_step=4),
    )
    module = Mock(spec=LightningModule, progress_metrics=(("loss", "loss"), ("IoU", "iou_last_round")))
    progress.on_train_start(trainer, module)
    for step in range(1, steps + 1):
        clock.now += 2
        trainer.global_step = step
        progress.on_train_batch_end(trainer, module, None, None, step - 1)
        if step == validate_at:
            progress.on_validation_start(trainer, module)
            clock.now += 10
            progress.on_validation_end(trainer, module)
    progress.on_train_end(trainer, module)


def test_without_a_terminal_each_interval_and_validation_is_one_plain_line() -> None:
    output = io.StringIO()
    run(Console(file=output, width=40, highlight=False, soft_wrap=True))
    assert output.getvalue().splitlines() == [
        "step 2/6: loss 1.500, IoU 0.250, 2.0 images/s, 8 s left",
        "step 3/6: validation mIoU@1 0.500, in 10 s",
        "step 4/6: loss 1.500, IoU 0.250, 2.0 images/s, 9 s left",
        "step 6/6: loss 1.500, IoU 0.250, 2.0 images/s, 0 s left",
    ]


def test_a_terminal_shows_a_bar_with_the_total() -> None:
    output = io.StringIO()
    run(Console(file=output, width=100, force_terminal=True, highlight=False))
    assert "step 5/6: loss 1.500" in output.getvalue()
    assert "\x1b[" in output.getvalue()
    assert output.getvalue().count("validation mIoU@1 0.500") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (200_000, "2 d 7 h")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
