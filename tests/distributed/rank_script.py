"""One process of several: reads jobs as lines of JSON, answers each with a line. Started by `ranks.Ranks`.

A job is a list of overrides of `sam-train`, and perhaps the step at which the process is to be killed, before its end. Asked with
`tell_keys`, the answer says which images this process saw, step by step.
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

WHOLE_STEP = SamModule.training_step


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def do(job: dict[str, Any]) -> dict[str, Any]:
    seen: list[tuple[int, list[str]]] = []
    told = {"seen": seen} if job.get("tell_keys") else {}

    def step(self: SamModule, batch: Any, batch_idx: int) -> None:
        seen.append((self.global_step, [*batch.keys]))
        if self.global_step == job.get("kill_at"):
            raise KilledError
        self.preemption_requested |= self.global_step == job.get("ask_at") and self.global_rank == job["ask_rank"]
        WHOLE_STEP(self, batch, batch_idx)

    SamModule.training_step = step  # type: ignore[method-assign]
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        cfg = compose("train", overrides=job["overrides"])
    try:
        return {"metrics": train_model(cfg)} | told
    except KilledError:
        return {"killed": True} | told
    except Preempted as error:
        return {"preempted": str(error), "is_rank_zero": error.is_rank_zero}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # bars and logs go beside the answers
    for line in sys.stdin:
        try:
            answer = do(json.loads(line))
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
