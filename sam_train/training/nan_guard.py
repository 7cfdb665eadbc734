"""A loss that is no number ends the run before it ends the weights."""

from __future__ import annotations

import json
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sam_train.errors import TrainingError
from sam_train.files import atomic_write_bytes
from sam_train.training.step_metrics import ReducedStepMetrics, rank_and_world_size


def check_finite(
    sums: ReducedStepMetrics, norm: Float[Tensor, ""], keys: tuple[str, ...], *, step: int, folder: Path | None
) -> None:
    """Raise TrainingError, in all processes, when a loss of the step or the norm of its gradient is not finite.

    A process whose own losses are not, or all of them when only the gradient is not, leave step, keys and losses in
    `folder` / no_number_<rank>.json.
    """
    if sums.is_finite and bool(norm.isfinite()):
        return
    mine = not sums.is_finite_locally or sums.is_finite
    message = f"step {step}: {'the gradient' if sums.is_finite else 'a loss'} is no number"
    if not mine:
        raise TrainingError(f"{message} in another process, which names the pictures")
    where = ""
    if folder:
        path = folder / f"no_number_{rank_and_world_size()[0]}.json"
        document = {
            "step": step,
            "keys": keys,
            "gradient_norm": str(float(norm)),
            "sums": [str(v) for v in sums.local_sums.tolist()],
        }
        atomic_write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())
        where = f" (all in {path})"
    shown = ", ".join(keys[:8])
    what_to_do = "look at these pictures, or lower optim.lr; the last checkpoint is from before"
    raise TrainingError(f"{message}, in a batch of {shown}{where}: {what_to_do}")
