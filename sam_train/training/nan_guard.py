"""Stops a run at a NaN or inf loss or gradient, before the weights are updated with it."""

from __future__ import annotations

import json
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sam_train.errors import NonFiniteError
from sam_train.files import atomic_write_bytes
from sam_train.training.step_metrics import ReducedStepMetrics, rank_and_world_size


def check_finite(
    step_metrics: ReducedStepMetrics, gradient_norm: Float[Tensor, ""], keys: tuple[str, ...], *, step: int, folder: Path | None
) -> None:
    """Raise NonFiniteError, in all processes, if a loss of the step or the norm of its gradient is NaN or inf.

    The processes whose own losses are NaN or inf, or all processes if only the gradient is, write the step, the keys of their
    images and their sums to `folder` / nan_report_<rank>.json; without a folder nothing is written.
    """
    if step_metrics.is_finite and bool(gradient_norm.isfinite()):
        return
    is_reporter = not step_metrics.is_finite_locally or step_metrics.is_finite
    message = f"step {step}: {'the gradient' if step_metrics.is_finite else 'a loss'} is NaN or inf"
    if not is_reporter:
        raise NonFiniteError(f"{message} in another process, whose error names the images")
    report = ""
    if folder:
        path = folder / f"nan_report_{rank_and_world_size()[0]}.json"
        sums = [str(value) for value in step_metrics.local_sums.tolist()]
        document = {"step": step, "keys": keys, "gradient_norm": str(float(gradient_norm)), "sums": sums}
        atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        report = f" (all of them in {path})"
    first_keys = ", ".join(keys[:8])
    remedy = "inspect these images, or lower optim.lr"
    raise NonFiniteError(f"{message}, in a batch of {first_keys}{report}: {remedy}")
