"""The local driver: worker processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from data_engine.drivers.base import ProgressDisplay, process_slices
from data_engine.drivers.worker_pool import WorkerSpec, run_in_processes
from data_engine.slices import EngineJob, Worker
from sam_train.errors import ConfigError


class LocalDriver:
    """Makes slices in this process, or in several worker processes.

    processes: number of processes; None means one per GPU if the device is "cuda", else one. Several processes on "cuda" are
        assigned to the GPUs in turn; on the CPU each gets an equal share of the threads, unless the engine's `threads` is set.
    """

    def __init__(self, *, processes: int | None = None) -> None:
        if processes is not None and processes < 1:
            raise ConfigError(f"driver.processes is {processes}: expected 1 or more, or null for one per GPU")
        self.processes = processes

    def num_workers(self, device: str) -> int:
        """Return the number of processes."""
        return self.processes or (max(torch.cuda.device_count(), 1) if device == "cuda" else 1)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Make the slices and return those that failed, with the reason.

        With one process they are made in this process, and an error ends the run. With several, a process that dies is replaced.
        """
        device, threads = str(job.config["device"]), job.config["threads"]
        num_workers = min(self.num_workers(device), len(slices))
        if num_workers <= 1:
            if slices:
                process_slices(Worker(job, device=device, threads=threads), slices, display)
            return {}
        return run_in_processes(job, slices, display, worker_specs(device, threads, num_workers))


def worker_specs(device: str, threads: int | None, num_workers: int) -> list[WorkerSpec]:
    """Return a device and a number of threads for each of `num_workers` processes."""
    num_gpus = torch.cuda.device_count() if device == "cuda" else 0
    threads_each = threads or max(1, num_cpus() // num_workers)
    devices = [f"cuda:{index % num_gpus}" if num_gpus else device for index in range(num_workers)]
    return [WorkerSpec(device=name, threads=threads_each) for name in devices]


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
