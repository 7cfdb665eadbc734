"""Tasks of a Ray cluster. Ray says where a slice is made; our writer makes its shard, so names and bytes are everybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_engine.drivers.base import ProgressDisplay, SliceQueue, report_or_defer
from data_engine.slices import EngineJob, SliceResult, SliceStatus, Worker
from sam_train.errors import ConfigError, SamTrainError, format_error

_POLL_S = 0.5
_TRIES_AFTER_DEATH = 1


class RayDriver:
    """A task for each slice; one whose process dies is tried once more, by Ray.

    address: of the cluster; None finds the one that this machine belongs to, or starts one here for the time of the run.
    cpus_per_task, gpus_per_task: what Ray sets aside for each. A task has as many threads as CPUs, unless `threads` says.
    """

    def __init__(self, *, address: str | None = None, cpus_per_task: int = 1, gpus_per_task: float = 0) -> None:
        if cpus_per_task < 1 or gpus_per_task < 0:
            raise ConfigError(
                f"driver.cpus_per_task is {cpus_per_task}, driver.gpus_per_task {gpus_per_task}: expected 1 and 0 at least"
            )
        self.address, self.cpus_per_task, self.gpus_per_task = address, cpus_per_task, gpus_per_task

    def width(self, device: str) -> int:
        """Tasks that the cluster has room for at once."""
        ray = self._started()
        there = ray.cluster_resources()
        room = int(there.get("CPU", 1) // self.cpus_per_task)
        return max(1, min(room, int(there.get("GPU", 0) // self.gpus_per_task)) if self.gpus_per_task else room)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Hand all slices to Ray. Raises SamTrainError with the words of the first task that met an error."""
        if not slices:
            return {}
        ray = self._started()
        threads = job.config["threads"] or self.cpus_per_task
        task = ray.remote(_make).options(
            num_cpus=self.cpus_per_task, num_gpus=self.gpus_per_task, max_retries=_TRIES_AFTER_DEATH, retry_exceptions=False
        )
        shared, todo, failed = ray.put(job), SliceQueue(slices), dict[int, str]()
        running: dict[Any, int] = {}
        try:
            while todo or running:
                while (index := todo.take()) is not None:
                    running[task.remote(shared, index, threads)] = index
                for done in ray.wait(list(running), timeout=_POLL_S)[0] if running else []:
                    _take(ray, done, running.pop(done), todo, failed, display)
        finally:
            for left in running:
                ray.cancel(left, force=True)
        return failed

    def _started(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"driver=ray needs Ray ({error}): pip install 'sam-train[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="warning")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"driver.address={self.address}: no Ray there ({error})") from error
        return ray


def _take(ray: Any, done: Any, index: int, todo: SliceQueue, failed: dict[int, str], display: ProgressDisplay) -> None:
    """What became of a task."""
    try:
        outcome, error = ray.get(done)
    except ray.exceptions.RayTaskError as fault:  # of ours: all of it is wanted
        raise SamTrainError(f"a Ray task met an error that nobody expected:\n{fault}") from fault
    except ray.exceptions.RayError as death:
        failed[index] = f"its Ray task died, for the second time: {str(death).strip().partition(chr(10))[0]}"
        display.say(f"slice {index} is given up: {failed[index]}")
        return
    if error:
        raise SamTrainError(error)
    if outcome.status is SliceStatus.WRITTEN:
        display.slice(outcome, told=False)
    else:
        report_or_defer(outcome, todo, display)


class _NoProgress:
    """The watch of a task: Ray carries no news of single pictures."""

    def begin(self, origin: str) -> None: ...

    def add(self, *, images: int, masks: int, skipped: int) -> None: ...


_workers: list[Worker] = []
"""The last worker of this process: Ray keeps processes for further tasks, and loading a model takes longer than a picture."""


def _make(job: EngineJob, index: int, threads: int) -> tuple[SliceResult | None, str]:
    """What a task does: one slice. Outcome, or the words of an error that is meant to be read."""
    try:
        if not _workers or _workers[0].job != job:
            _workers[:] = [Worker(job, device=str(job.config["device"]), threads=threads)]
        return _workers[0].run(index, _NoProgress()), ""
    except (SamTrainError, OSError) as error:
        return None, format_error(error)
