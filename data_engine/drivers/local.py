"""Processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from data_engine.drivers.base import ProgressDisplay, process_slices
from data_engine.drivers.worker_pool import WorkerSpec, run_in_processes
from data_engine.slices import EngineJob, Worker
from sam_train.errors import ConfigError


class LocalDriver:
    """One process, this one, or several.

    processes: None is one for each GPU when the device is "cuda", else one. With several on "cuda" they take turns on the
        GPUs; on the CPU each has its share of the threads, unless `threads` of the engine says how many.
    """

    def __init__(self, *, processes: int | None = None) -> None:
        if processes is not None and processes < 1:
            raise ConfigError(f"driver.processes is {processes}: expected 1 or more, or null for one a GPU")
        self.processes = processes

    def width(self, device: str) -> int:
        """Processes."""
        return self.processes or (max(torch.cuda.device_count(), 1) if device == "cuda" else 1)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """In this process if there is one, where an error ends the run; a process of several that dies is replaced."""
        device, threads = str(job.config["device"]), job.config["threads"]
        width = min(self.width(device), len(slices))
        if width <= 1:
            if slices:
                process_slices(Worker(job, device=device, threads=threads), slices, display)
            return {}
        return run_in_processes(job, slices, display, worker_specs(device, threads, width))


def worker_specs(device: str, threads: int | None, width: int) -> list[WorkerSpec]:
    """A device and a number of threads for each of `width` processes."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    share = threads or max(1, num_cpus() // width)
    return [WorkerSpec(device=f"cuda:{place % gpus}" if gpus else device, threads=share) for place in range(width)]


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
