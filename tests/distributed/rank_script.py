"""One rank process: reads jobs as lines of JSON and writes one result line for each. Started by `dist_runner.RankProcesses`.

A job holds overrides of `sam-train` and optionally `kill_at`, a step before whose end the process is killed, or `preempt_at` and
`preempt_rank`, the step and rank of a preemption signal. With `record_keys`, the result lists the images of each step.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from sam_train.config import config_dir
from sam_train.train import train_model
from sam_train.training import SamModule
from sam_train.training.preemption import Preempted

ORIGINAL_STEP = SamModule.training_step


class KilledError(BaseException):
    """Simulates SIGKILL: no `except Exception` catches it."""


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    seen: list[tuple[int, list[str]]] = []
    recorded = {"seen": seen} if job.get("record_keys") else {}

    def step(self: SamModule, batch: Any, batch_idx: int) -> None:
        seen.append((self.global_step, [*batch.keys]))
        if self.global_step == job.get("kill_at"):
            raise KilledError
        self.preemption_requested |= self.global_step == job.get("preempt_at") and self.global_rank == job["preempt_rank"]
        ORIGINAL_STEP(self, batch, batch_idx)

    SamModule.training_step = step  # type: ignore[method-assign]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("train", overrides=job["overrides"])
    try:
        return {"metrics": train_model(cfg)} | recorded
    except KilledError:
        return {"killed": True} | recorded
    except Preempted as error:
        return {"preempted": str(error), "is_rank_zero": error.is_rank_zero}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results, sys.stdout = sys.stdout, sys.stderr  # progress bars and logs must not mix with the results
    for line in sys.stdin:
        try:
            result = run_job(json.loads(line))
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    main()
