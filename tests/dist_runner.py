"""Run `sam-train` in two or more persistent rank processes, in a forked process, or in this process.

Importing the trainer takes longer than training here, so processes are reused or forked from one that has imported it.
"""

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

RANK_SCRIPT = Path(__file__).with_name("distributed") / "rank_script.py"
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


class RankProcesses:
    """`num` rank processes on this machine, connected by gloo, that run one job after another."""

    def __init__(self, num: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(num)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(RANK_SCRIPT)],
                env={**environment, "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(num)
        ]

    def run(self, overrides: list[str], **job: Any) -> list[dict[str, Any]]:
        """Run a job and return the result of each rank. Raises AssertionError with the traceback if a rank fails."""
        self.submit(overrides, **job)
        results = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]
        errors = [result["traceback"] for result in results if "error" in result]
        assert not errors, "\n".join(errors)
        return results

    def submit(self, overrides: list[str], **job: Any) -> None:
        """Send a job to all ranks without waiting for the results."""
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


def start_forked(overrides: list[str], output_path: Path) -> BaseProcess:
    """Start `sam-train` in a forked process with its own session and its output in a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sam_train.train"])
    process = context.Process(target=_command, args=(overrides, output_path))
    process.start()
    return process


def run_forked(overrides: list[str], output_path: Path) -> None:
    """Run `sam-train` in a forked process, without the shape checks of this process, which take most of the time."""
    process = start_forked(overrides, output_path)
    process.join()
    assert process.exitcode == 0, output_path.read_text()


def _command(overrides: list[str], output_path: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # loader processes are forked, as in the command itself
    with output_path.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = ["sam-train", *overrides]
    main()


def run_in_process(overrides: list[str]) -> dict[str, float]:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        return train_model(compose("train", overrides=overrides))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model.pt", weights_only=True)["model"]


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv" / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
