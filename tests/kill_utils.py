"""A run of the engine that is killed again and again: started as a program, so that no test runner hears the shots.

    python tests/kill_utils.py NUM_KILLS OVERRIDE...

Everything is imported once and each attempt is a fork, or twenty attempts would spend their time on importing torch. Prints
one line of JSON: shards that were there after each kill, and the seconds of the last attempt.
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


def attempt(config: DictConfig) -> int:
    """The process id of a fork that runs the engine to its end."""
    if child := os.fork():
        return child
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    run_stage(config)
    os._exit(0)


def num_shards(config: DictConfig) -> int:
    return len(list(Path(config.out).glob("*.manifest.json")))


def main(num_kills: int, overrides: list[str]) -> None:
    torch.set_num_threads(1)  # before the forks: a thread would not be there in them
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("engine", overrides=overrides)
    chance, there = np.random.default_rng(0), []
    while len(there) < num_kills:
        child = attempt(config)
        # From killed while it is preparing to killed after some slices; half of them within 0.6 seconds. On a fast machine
        # after a few slices at most, or the run would be over before it was killed so often.
        lived_s, num_slices = min(chance.lognormal(-0.5, 1), 3), num_shards(config) + int(chance.integers(1, 5))
        killed_at = time.monotonic() + lived_s
        while time.monotonic() < killed_at and num_shards(config) < num_slices:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"it ended by itself, with {status}, before it was killed {num_kills} times: {there}")
        there.append(num_shards(config))
    began = time.monotonic()
    _, status = os.waitpid(attempt(config), 0)
    print(json.dumps({"there": there, "status": status, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
