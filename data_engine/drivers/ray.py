"""The Ray driver: one task of a Ray cluster per slice.

Ray only schedules the slices. The shards are written by `Worker`, so their names and bytes are those of the other drivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_engine.drivers.base import ProgressDisplay, SliceQueue, report_or_defer
from data_engine.slices import EngineJob, SliceResult, SliceStatus, Worker
from sam_train.errors import ConfigError, SamTrainError, format_error, install_extra

_POLL_S = 0.5
_RETRIES_AFTER_DEATH = 1


class RayDriver:
    """Runs a Ray task for each slice. Ray retries a task once if its process dies.

    address: address of the cluster; None selects the cluster to which this machine belongs, or starts one here for this run.
    cpus_per_task, gpus_per_task: resources that Ray reserves for each task. A task has as many threads as CPUs, unless the
        engine's `threads` is set.
    """

    def __init__(self, *, address: str | None = None, cpus_per_task: int = 1, gpus_per_task: float = 0) -> None:
        if cpus_per_task < 1 or gpus_per_task < 0:
            raise ConfigError(
                f"driver.cpus_per_task is {cpus_per_task} and driver.gpus_per_task is {gpus_per_task}:"
                " expected at least 1 and at least 0"
            )
        self.address, self.cpus_per_task, self.gpus_per_task = address, cpus_per_task, gpus_per_task

    def num_workers(self, device: str) -> int:
        """Return the number of tasks that the cluster can run concurrently."""
        ray = self._connect()
        resources = ray.cluster_resources()
        num_tasks = int(resources.get("CPU", 1) // self.cpus_per_task)
        if self.gpus_per_task:
            num_tasks = min(num_tasks, int(resources.get("GPU", 0) // self.gpus_per_task))
        return max(1, num_tasks)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Submit all slices to Ray and return those that failed, with the reason.

        Raises SamTrainError with the message of the first task that raised an error.
        """
        if not slices:
            return {}
        ray = self._connect()
        threads = job.config["threads"] or self.cpus_per_task
        task = ray.remote(_process_slice).options(
            num_cpus=self.cpus_per_task, num_gpus=self.gpus_per_task, max_retries=_RETRIES_AFTER_DEATH, retry_exceptions=False
        )
        shared_job, queue, failed = ray.put(job), SliceQueue(slices), dict[int, str]()
        running: dict[Any, int] = {}
        try:
            while queue or running:
                while (index := queue.pop()) is not None:
                    running[task.remote(shared_job, index, threads)] = index
                for finished in ray.wait(list(running), timeout=_POLL_S)[0] if running else []:
                    _handle_finished_task(ray, finished, running.pop(finished), queue, failed, display)
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)
        return failed

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"driver=ray needs Ray ({error}): {install_extra('ray')}") from error
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="warning")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"driver.address={self.address}: cannot connect to Ray ({error})") from error
        return ray


def _handle_finished_task(
    ray: Any, task: Any, index: int, queue: SliceQueue, failed: dict[int, str], display: ProgressDisplay
) -> None:
    try:
        result, error = ray.get(task)
    except ray.exceptions.RayTaskError as fault:  # a bug of ours: the full traceback is needed
        raise SamTrainError(f"unexpected error in a Ray task:\n{fault}") from fault
    except ray.exceptions.RayError as death:
        failed[index] = f"its Ray task died for the second time: {str(death).strip().partition(chr(10))[0]}"
        display.log(f"slice {index} failed: {failed[index]}")
        return
    if error:
        raise SamTrainError(error)
    if result.status is SliceStatus.WRITTEN:
        display.finish_slice(result, counted=False)
    else:
        report_or_defer(result, queue, display)


class _NoProgress:
    """Progress listener of a Ray task, which ignores progress: Ray transmits only the result of a task."""

    def start_image(self, origin: str) -> None: ...

    def advance(self, *, images: int, masks: int, skipped: int) -> None: ...


_workers: list[Worker] = []
"""The last worker of this process. Ray reuses processes for further tasks, and loading a model takes longer than an image."""


def _process_slice(job: EngineJob, index: int, threads: int) -> tuple[SliceResult | None, str]:
    """Make one slice in a Ray task. Return its result, or the message of an expected error."""
    try:
        if not _workers or _workers[0].job != job:
            _workers[:] = [Worker(job, device=str(job.config["device"]), threads=threads)]
        return _workers[0].process_slice(index, _NoProgress()), ""
    except (SamTrainError, OSError) as error:
        return None, format_error(error)
