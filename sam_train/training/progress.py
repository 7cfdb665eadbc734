"""Progress of a run: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LABELS = {
    "val/miou_at_1": "mIoU@1",
    "val/miou_at_3": "mIoU@3",
    "val/miou_at_5": "mIoU@5",
    "val/miou_from_text": "mIoU from text",
    "val/box_precision": "box precision",
    "val/box_recall": "box recall",
    "val/box_f1": "box F1",
}
"""The validation metrics that are printed, and their labels."""

REFRESH_INTERVAL_S = 0.25
"""Shortest time between two updates of the bar: each reads metrics from the device."""


class RunProgress(Callback):
    """Prints step, total, loss, IoU, images per second and the time left.

    On a terminal it is a bar. Elsewhere it is a line at each of the trainer's `log_every_n_steps`. Each validation adds a line in
    both cases. Only the process of rank 0 prints.

    console: where it prints; the standard output by default.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._start_step = 0
        self._start = self._line_time = self._validation_start = clock()
        self._line_step = 0
        self._paused_s = self._refreshed = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar and the clock."""
        self._start_step = self._line_step = trainer.global_step
        self._start = self._line_time = self._clock()
        self._paused_s = 0.0
        if trainer.is_global_zero and self._console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self._console, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task(f"step {trainer.global_step}/{trainer.max_steps}", total=trainer.max_steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the bar, or print a line at the end of an interval."""
        is_line = trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == trainer.max_steps  # type: ignore[attr-defined]
        is_due = self._bar and self._clock() - self._refreshed > REFRESH_INTERVAL_S
        if not trainer.is_global_zero or not (is_due or is_line):
            return
        self._refreshed = self._clock()
        text = self._describe(trainer, pl_module)
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, description=text, refresh=True)
        else:
            self._console.print(text, markup=False)
        if is_line:
            self._line_step, self._line_time, self._paused_s = trainer.global_step, self._clock(), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember when the validation started."""
        self._validation_start = self._clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the figures of the validation."""
        seconds = self._clock() - self._validation_start
        self._paused_s += seconds
        figures = describe_validation(trainer.callback_metrics)
        if trainer.is_global_zero and figures:
            where = "before training" if trainer.sanity_checking else f"step {trainer.global_step}/{trainer.max_steps}"
            self._console.print(f"{where}: validation {figures}, in {format_seconds(seconds)}", markup=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the bar, so that the message of the error begins on its own line."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _describe(self, trainer: Trainer, module: Any) -> str:
        step, now = trainer.global_step, self._clock()
        seconds = max(now - self._line_time - self._paused_s, 1e-9)
        images = (step - self._line_step) * trainer.datamodule.images_per_step  # type: ignore[attr-defined]
        left = (trainer.max_steps - step) * (now - self._start) / max(step - self._start_step, 1)
        logged = trainer.callback_metrics
        metrics = [f"{label} {float(logged[f'train/{name}']):.3f}" for label, name in module.progress_metrics]
        parts = [*metrics, f"{images / seconds:.1f} images/s", f"{format_seconds(left)} left"]
        return f"step {step}/{trainer.max_steps}: {', '.join(parts)}"


def describe_validation(metrics: Mapping[str, Any]) -> str:
    """Return the printed validation metrics, such as "mIoU@1 0.805, mIoU@3 0.861"; "" if there are none."""
    return ", ".join(f"{label} {float(metrics[name]):.3f}" for name, label in LABELS.items() if name in metrics)


def format_seconds(seconds: float) -> str:
    """Return a duration in two units, such as "42 s", "3 min 20 s" or "5 h 12 min"."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    hours, minutes = divmod(round(total / 60), 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
