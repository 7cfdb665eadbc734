"""A SLURM job array through submitit."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_engine.drivers.base import ProgressDisplay, process_slices
from data_engine.drivers.progress import ProgressLog
from data_engine.slices import EngineJob, EngineRunFolder, SliceResult, SliceStatus, Worker
from sam_train.errors import ConfigError
from sam_train.shards import load_manifest

_POLL_S = 2.0
_ASK_EVERY_S = 15.0
_VISIBLE_AFTER_S = 20.0
"""A task's last files may be seen here later than its end."""


class SlurmDriver:
    """Tasks of one array; task i of N makes every N-th of the slices that are left, from the i-th.

    tasks: N. at_once: how many may run at a time; None leaves that to SLURM.
    partition, account, minutes, cpus_per_task, gpus_per_task, mem_gb: of a task; None leaves it to the site.
    requeues: how often a task may run into its time limit. It is put back into the queue then, as SLURM does by itself with
        one that is preempted, and goes on with what is missing.
    options: further options of sbatch, such as {constraint: a100}. setup: lines of shell before Python starts.
    cluster: "slurm", or "local" for processes on this machine in its place, to try things out.
    """

    def __init__(
        self,
        *,
        tasks: int,
        at_once: int | None = None,
        partition: str | None = None,
        account: str | None = None,
        minutes: int = 1440,
        cpus_per_task: int = 8,
        gpus_per_task: int = 0,
        mem_gb: float | None = None,
        requeues: int = 100,
        options: Mapping[str, Any] | None = None,
        setup: Sequence[str] | None = None,
        cluster: str = "slurm",
    ) -> None:
        if tasks < 1:
            raise ConfigError(f"driver.tasks is {tasks}: expected 1 or more")
        if cluster not in ("slurm", "local"):
            raise ConfigError(f"driver.cluster is {cluster!r}: expected slurm or local")
        self.tasks, self.at_once, self.cluster, self.requeues = tasks, at_once, cluster, requeues
        self.cpus_per_task = cpus_per_task
        parameters: dict[str, Any] = {
            "name": "sam-engine",
            "timeout_min": minutes,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_task or None,
            "mem_gb": mem_gb,
            "stderr_to_stdout": True,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_array_parallelism": at_once or tasks,
            "slurm_setup": list(setup or ()) or None,
            "slurm_additional_parameters": dict(options or {}) or None,
        }
        self._parameters = {name: value for name, value in parameters.items() if value is not None}

    def width(self, device: str) -> int:
        """Tasks at once."""
        return min(self.tasks, self.at_once or self.tasks)

    def run(self, job: EngineJob, slices: Sequence[int], display: ProgressDisplay) -> dict[int, str]:
        """Submit the array and wait for it. Given up is what is not there when it has left the queue.

        Raises ConfigError when there is no SLURM or it does not take the array.
        """
        if not slices:
            return {}
        shares = [list(slices[task :: self.tasks]) for task in range(min(self.tasks, len(slices)))]
        array = self._submit(job, shares)
        display.say(f"{array.name}: {len(shares)} tasks, logs in {array.logs}")
        _wait_for_array(array, job.folder, slices, display)
        return array.failed(job.folder.missing_slices(slices), shares)

    def _submit(self, job: EngineJob, shares: Sequence[Sequence[int]]) -> _JobArray:
        try:
            import submitit
            from submitit.core.utils import FailedJobError
        except ImportError as error:
            raise ConfigError(f"driver=slurm needs submitit ({error}): pip install 'sam-train[slurm]'") from error
        logs = job.folder.driver_folder("slurm")
        try:
            executor = submitit.AutoExecutor(folder=logs, cluster=self.cluster, slurm_max_num_timeout=self.requeues)
            executor.update_parameters(**self._parameters)
            jobs = executor.map_array(SlurmTask(self.cpus_per_task), [job] * len(shares), shares)
        except (RuntimeError, FailedJobError, subprocess.SubprocessError, OSError) as error:
            raise ConfigError(f"no array was submitted: {error}; driver=local needs no SLURM") from error
        return _JobArray(jobs=jobs, logs=logs, slurm=self.cluster == "slurm")


class SlurmTask:
    """What a task does. It may be put back into the queue at any moment: slices are whole or not there."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus

    def __call__(self, job: EngineJob, slices: Sequence[int]) -> None:
        """Make the slices in this process."""
        worker = Worker(job, device=str(job.config["device"]), threads=job.config["threads"] or self.cpus)
        process_slices(worker, slices, ProgressLog())

    def checkpoint(self, job: EngineJob, slices: Sequence[int]) -> Any:
        """What submitit puts into the queue when the time is up: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job, slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobArray:
    """What was submitted."""

    jobs: Sequence[Any]
    logs: Path
    slurm: bool

    @property
    def number(self) -> str:
        return str(self.jobs[0].job_id).partition("_")[0]

    @property
    def name(self) -> str:
        return f"SLURM job {self.number} (scancel {self.number} ends it)" if self.slurm else "processes of submitit"

    def has_results(self) -> bool:
        return all(job.paths.result_pickle.exists() for job in self.jobs)

    def has_left_queue(self) -> bool:
        """Whether SLURM knows of no task that waits or runs. Not asked of sacct, which many a site does not have."""
        if not self.slurm:
            return all(job.done() for job in self.jobs)
        command = ["squeue", "--noheader", "--jobs", self.number, "--format", "%T"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:  # a job that ended long ago is an error to squeue, and so is a controller that restarts
            return "Invalid job id" in answer.stderr
        return not answer.stdout.strip()

    def failed(self, missing_slices: Sequence[int], shares: Sequence[Sequence[int]]) -> dict[int, str]:
        """Each slice that is not there, with what its task says of its end."""
        missing, reasons = set(missing_slices), dict[int, str]()
        for job, share in zip(self.jobs, shares, strict=True):
            if missing & set(share):
                reasons |= dict.fromkeys(sorted(missing & set(share)), _end_of(job))
        return reasons


def _end_of(job: Any) -> str:
    from submitit.core.utils import pickle_load

    log = f"see {job.paths.stdout}"
    if not job.paths.result_pickle.exists():
        return f"task {job.job_id} was ended from outside ({log})"
    outcome, result = pickle_load(job.paths.result_pickle)
    last = str(result).strip().splitlines()[-1:] if outcome == "error" else []
    return f"task {job.job_id}: {last[0]} ({log})" if last else f"task {job.job_id} left it out ({log})"


def _wait_for_array(array: _JobArray, folder: EngineRunFolder, slices: Sequence[int], display: ProgressDisplay) -> None:
    """Until the array has ended, tell of each slice that is new in the folder."""
    left, asked = list(slices), time.monotonic()
    over: float | None = None
    while True:
        left = _report_finished_slices(folder, left, display)
        now = time.monotonic()
        if over is None and (not left or (now - asked > _ASK_EVERY_S and array.has_left_queue())):
            over = now
        if over is None and now - asked > _ASK_EVERY_S:
            asked = now
        if array.has_results() or (over is not None and now - over > _VISIBLE_AFTER_S):
            _report_finished_slices(folder, left, display)
            return
        time.sleep(_POLL_S)


def _report_finished_slices(folder: EngineRunFolder, slices: Sequence[int], display: ProgressDisplay) -> list[int]:
    """Tell of those that are there; returns the others."""
    missing_slices = folder.missing_slices(slices)
    for index in sorted(set(slices) - set(missing_slices)):
        manifest = load_manifest(folder.shard(index))
        numbers = {"images": len(manifest.keys), "masks": manifest.num_masks, "skipped": len(manifest.skipped)}
        display.slice(SliceResult(index=index, status=SliceStatus.ALREADY_DONE, **numbers), told=False)
    return missing_slices
