"""The SLURM driver: a job array through submitit. A task that runs into its time limit is requeued."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.drivers.base import ProgressDisplay, process_slices
from data_engine.drivers.progress import ProgressLog
from data_engine.slices import EngineJob, EngineRunFolder, Worker, existing_result
from sam_train.errors import ConfigError, install_extra

_POLL_S = 2.0
_SQUEUE_INTERVAL_S = 15.0
_VISIBILITY_DELAY_S = 20.0
"""Seconds to wait after the end of the array, because the last files of a task may become visible here later."""


class SlurmDriver:
    """Runs one job array; task I of N makes every N-th of the missing slices, starting from the I-th.

    tasks: number of tasks N. array_parallelism: maximum number of tasks that run concurrently; None leaves it to SLURM.
    partition, account, time_limit_min, cpus_per_task, gpus_per_task, mem_gb: resources of a task; None leaves them to the site.
    max_requeues: how often a task that runs into its time limit is requeued; it then resumes with the missing slices. SLURM
        itself requeues tasks that are preempted.
    options: further options of sbatch, such as {constraint: a100}. setup: shell lines that run before Python starts.
    cluster: "slurm", or "local" to run the tasks as processes on this machine, for tests.
    """

    def __init__(
        self,
        *,
        tasks: int,
        array_parallelism: int | None = None,
        partition: str | None = None,
        account: str | None = None,
        time_limit_min: int = 1440,
        cpus_per_task: int = 8,
        gpus_per_task: int = 0,
        mem_gb: float | None = None,
        max_requeues: int = 100,
        options: Mapping[str, Any] | None = None,
        setup: Sequence[str] | None = None,
        cluster: str = "slurm",
    ) -> None:
        if tasks < 1:
            raise ConfigError(f"driver.tasks is {tasks}: expected 1 or more")
        if cluster not in ("slurm", "local"):
            raise ConfigError(f"driver.cluster is {cluster!r}: expected slurm or local")
        self.tasks, self.array_parallelism, self.cluster = tasks, array_parallelism, cluster
        self.max_requeues, self.cpus_per_task = max_requeues, cpus_per_task
        parameters: dict[str, Any] = {
            "name": "sam-engine",
            "timeout_min": time_limit_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_task or None,
            "mem_gb": mem_gb,
            "stderr_to_stdout": True,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_array_parallelism": array_parallelism or tasks,
            "slurm_setup": list(setup or ()) or None,
            "slurm_additional_parameters": dict(options or {}) or None,
        }
        self._parameters = {name: value for name, value in parameters.items() if value is not None}

    def num_workers(self, device: str) -> int:
        """Return the number of tasks that run concurrently."""
        return min(self.tasks, self.array_parallelism or self.tasks)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Submit the array, wait for its end, and return the slices that are still missing then, with the reason.

        Raises ConfigError if SLURM is unavailable or rejects the array.
        """
        if not slices:
            return {}
        task_slices = [list(slices[task :: self.tasks]) for task in range(min(self.tasks, len(slices)))]
        array = self._submit(job, task_slices)
        display.log(f"{array.description}: {len(task_slices)} tasks, logs in {array.logs}")
        _wait_for_array(array, job.folder, slices, display)
        return array.failure_reasons(job.folder.missing_slices(slices), task_slices)

    def _submit(self, job: EngineJob, task_slices: Sequence[Sequence[int]]) -> _JobArray:
        try:
            import submitit
            from submitit.core.utils import FailedJobError
        except ImportError as error:
            raise ConfigError(f"driver=slurm needs submitit ({error}): {install_extra('slurm')}") from error
        logs = job.folder.driver_folder("slurm")
        try:
            executor = submitit.AutoExecutor(folder=logs, cluster=self.cluster, slurm_max_num_timeout=self.max_requeues)
            executor.update_parameters(**self._parameters)
            tasks = executor.map_array(SlurmTask(self.cpus_per_task), [job] * len(task_slices), task_slices)
        except (RuntimeError, FailedJobError, subprocess.SubprocessError, OSError) as error:
            raise ConfigError(f"the job array was not submitted: {error}; driver=local needs no SLURM") from error
        return _JobArray(tasks=tasks, logs=logs, slurm=self.cluster == "slurm")


class SlurmTask:
    """Work of one task of the array. It may be requeued at any moment, because shards are written atomically."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus

    def __call__(self, job: EngineJob, slices: Sequence[int]) -> None:
        """Make the slices in this process."""
        worker = Worker(job, device=str(job.config["device"]), threads=job.config["threads"] or self.cpus)
        process_slices(worker, slices, ProgressLog())

    def checkpoint(self, job: EngineJob, slices: Sequence[int]) -> Any:
        """Return the same work, which submitit requeues at the time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job, slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobArray:
    """A submitted job array."""

    tasks: Sequence[Any]
    """The jobs of submitit, one per task."""
    logs: Path
    slurm: bool

    @property
    def job_id(self) -> str:
        return str(self.tasks[0].job_id).partition("_")[0]

    @property
    def description(self) -> str:
        return f"SLURM job {self.job_id} (cancel with scancel {self.job_id})" if self.slurm else "processes of submitit"

    def has_results(self) -> bool:
        return all(task.paths.result_pickle.exists() for task in self.tasks)

    def has_left_queue(self) -> bool:
        """Return whether no task is pending or running. Uses squeue, because many sites do not have sacct."""
        if not self.slurm:
            return all(task.done() for task in self.tasks)
        command = ["squeue", "--noheader", "--jobs", self.job_id, "--format", "%T"]
        response = subprocess.run(command, capture_output=True, text=True, check=False)
        if response.returncode:  # squeue fails for a job that ended long ago, and also while the controller restarts
            return "Invalid job id" in response.stderr
        return not response.stdout.strip()

    def failure_reasons(self, missing: Sequence[int], task_slices: Sequence[Sequence[int]]) -> dict[int, str]:
        """Return each missing slice with the reason for which its task ended."""
        missing_set, reasons = set(missing), dict[int, str]()
        for task, slices in zip(self.tasks, task_slices, strict=True):
            if missing_set & set(slices):
                reasons |= dict.fromkeys(sorted(missing_set & set(slices)), _exit_reason(task))
        return reasons


def _exit_reason(task: Any) -> str:
    from submitit.core.utils import pickle_load

    log = f"see {task.paths.stdout}"
    if not task.paths.result_pickle.exists():
        return f"task {task.job_id} was ended from outside ({log})"
    outcome, result = pickle_load(task.paths.result_pickle)
    last = str(result).strip().splitlines()[-1:] if outcome == "error" else []
    return f"task {task.job_id}: {last[0]} ({log})" if last else f"task {task.job_id} did not make it ({log})"


def _wait_for_array(array: _JobArray, folder: EngineRunFolder, slices: Sequence[int], display: ProgressDisplay) -> None:
    """Wait for the end of the array, and show each slice that appears in the folder meanwhile."""
    missing, last_query = list(slices), time.monotonic()
    ended_at: float | None = None
    while True:
        missing = _report_finished_slices(folder, missing, display)
        now = time.monotonic()
        if ended_at is None and (not missing or (now - last_query > _SQUEUE_INTERVAL_S and array.has_left_queue())):
            ended_at = now
        if ended_at is None and now - last_query > _SQUEUE_INTERVAL_S:
            last_query = now
        if array.has_results() or (ended_at is not None and now - ended_at > _VISIBILITY_DELAY_S):
            _report_finished_slices(folder, missing, display)
            return
        time.sleep(_POLL_S)


def _report_finished_slices(folder: EngineRunFolder, slices: Sequence[int], display: ProgressDisplay) -> list[int]:
    """Show those of `slices` that are complete, and return the others."""
    missing = folder.missing_slices(slices)
    for index in sorted(set(slices) - set(missing)):
        display.finish_slice(existing_result(folder, index), counted=False)
    return missing
