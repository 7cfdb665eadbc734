"""Runs of several processes that stay and are handed one job after the other, and of one that is forked from a process that has
imported the trainer: importing takes longer than training here."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from sam_train.config import config_dir
from sam_train.train import main, train_model

RANK = Path(__file__).with_name("distributed") / "rank.py"
STEPS = 6
SMALL = [
    "model=vit_nano",
    "wandb.enabled=false",
    "~callbacks",
    "threads=1",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "checkpoint_every_n_steps=2",
    "optim.warmup_steps=3",
    "prompts={num_corrections: 2, num_mask_only_rounds: 2}",
    "data={images_per_step: 4, flip: true, quarter_turns: true, scale_jitter: [0.5, 1.5]}",
    "++model.drop_path_rate=0.5",
]


class Ranks:
    """`num` processes of one run on this machine, over gloo."""

    def __init__(self, num: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(num)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(RANK)],
                env={**shared, "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(num)
        ]

    def run(self, overrides: list[str], **job: Any) -> list[dict[str, Any]]:
        """What each process answers. Raises AssertionError with the traceback of one that failed."""
        self.begin(overrides, **job)
        answers = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]
        errors = [answer["traceback"] for answer in answers if "error" in answer]
        assert not errors, "\n".join(errors)
        return answers

    def begin(self, overrides: list[str], **job: Any) -> None:
        """Hand out a job whose answers nobody waits for."""
        line = json.dumps({"overrides": [*overrides, f"trainer.devices={len(self.processes)}"], **job}) + "\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def forked(overrides: list[str], said: Path) -> BaseProcess:
    """`sam-train` with these overrides, in a session of its own, its output in a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sam_train.train"])
    process = context.Process(target=_command, args=(overrides, said))
    process.start()
    return process


def run_forked(overrides: list[str], said: Path) -> None:
    """As `run_alone`, but not under the shape checks of this process, which take most of its time."""
    process = forked(overrides, said)
    process.join()
    assert process.exitcode == 0, said.read_text()


def _command(overrides: list[str], said: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as the command itself finds it, for its loader processes
    with said.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = ["sam-train", *overrides]
    main()


def run_alone(overrides: list[str]) -> dict[str, float]:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return train_model(compose("train", overrides=overrides))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model.pt", weights_only=True)["model"]


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv" / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
