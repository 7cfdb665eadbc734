"""Run the engine and kill it repeatedly. A program of its own, so that the signals do not reach the test runner.

    python tests/kill_utils.py NUM_KILLS OVERRIDE...

Everything is imported once and each attempt is a fork: twenty attempts would otherwise spend their time on importing torch.
Prints one line of JSON: the number of shards after each kill, and the exit status and seconds of the last attempt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from data_engine.engine import run_stage
from sam_train.config import config_dir


def start_attempt(config: DictConfig) -> int:
    """Fork a process that runs the engine to its end, and return its process id."""
    if child := os.fork():
        return child
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    run_stage(config)
    os._exit(0)


def num_shards(config: DictConfig) -> int:
    return len(list(Path(config.out).glob("*.manifest.json")))


def main(num_kills: int, overrides: list[str]) -> None:
    torch.set_num_threads(1)  # before the forks, which do not copy threads
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("engine", overrides=overrides)
    rng, num_shards_after = np.random.default_rng(0), []
    while len(num_shards_after) < num_kills:
        child = start_attempt(config)
        # Kill times range from the preparation to after some slices; half are within 0.6 seconds. On a fast machine the kill
        # comes after a few slices at most, or the run would end before the last kill.
        lifetime_s, max_slices = min(rng.lognormal(-0.5, 1), 3), num_shards(config) + int(rng.integers(1, 5))
        deadline = time.monotonic() + lifetime_s
        while time.monotonic() < deadline and num_shards(config) < max_slices:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"the run ended with status {status} before it was killed {num_kills} times: {num_shards_after}")
        num_shards_after.append(num_shards(config))
    start = time.monotonic()
    _, status = os.waitpid(start_attempt(config), 0)
    print(json.dumps({"num_shards": num_shards_after, "status": status, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
