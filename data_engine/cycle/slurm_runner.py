"""Actions as SLURM jobs, each of which waits for the end of the one before it.

Which model a step uses is known only when the step before it is evaluated. A job therefore receives only the name of its
action and reads the rest from the run folder: `sam-cycle step run=RUN name=2_assisted_manual/train`. All nodes must be able
to read and write the run folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from data_engine.console import console
from data_engine.cycle.pipeline import Action, Cycle
from data_engine.cycle.subprocess_runner import ProcessLauncher
from data_engine.cycle_folder import CycleFolder
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes

JOB_KINDS = ("all", "corpus", "annotate", "train", "evaluate", "final", "report")
"""Keys of `sbatch`: options for all jobs, and for those of one kind of action."""

SCRIPT = """#!/bin/bash
# {name}, written by sam-cycle runner=slurm. The same command submits it again if the action is not done.
{options}
{setup}
# The script waits for its action. On a signal the action writes a checkpoint and exits with code 75.
trap : TERM USR1
{command} &
action_pid=$!
wait "$action_pid"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$action_pid" 2>/dev/null; do # a signal ends the wait of bash, not the action
  wait "$action_pid"
  code=$?
done
if [ "$code" -eq 75 ]; then
  echo "preempted: job $SLURM_JOB_ID is requeued"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until SLURM ends the job; an exit before that would count as its end
fi
exit "$code"
"""


class SlurmRunner:
    """Submits a chain of jobs. A job that fails cancels those after it; the same command submits the remaining actions again.

    partition, account: None uses the default of the site.
    sbatch: options of sbatch by their long names, for `all` jobs and for each kind of action (JOB_KINDS); an option that is
        None is omitted. A training runs under srun with one task per device.
    setup: lines of shell before Python starts, such as `module load cuda`.
    Raises ConfigError if `sbatch` has another kind of job.
    """

    def __init__(
        self,
        *,
        partition: str | None = None,
        account: str | None = None,
        sbatch: Mapping[str, Mapping[str, Any]] | None = None,
        setup: Sequence[str] | None = None,
    ) -> None:
        if unknown := [kind for kind in sbatch or {} if kind not in JOB_KINDS]:
            raise ConfigError(f"runner.sbatch has {', '.join(unknown)}: expected some of {', '.join(JOB_KINDS)}")
        self._site_options = {"partition": partition, "account": account}
        self._sbatch, self._setup = dict(sbatch or {}), list(setup or ())

    def run(self, cycle: Cycle) -> None:
        """Submit every action that is not done, unless jobs of this loop are still waiting or running.

        Raises ConfigError if SLURM is missing or rejects a job; the jobs before it are cancelled in that case.
        """
        if self.has_queued_jobs(cycle.folder):
            return
        cycle.folder.jobs.mkdir(exist_ok=True)
        jobs: dict[str, str] = {}
        for action in cycle.list_actions():
            if not cycle.is_done(action):
                jobs[self._submit(cycle, action, list(jobs))] = action.name
        cycle.folder.write_submitted_jobs(jobs)
        console.print(f"jobs submitted, one after the other: {', '.join(jobs)}; scripts and logs are in {cycle.folder.jobs}")
        console.print(
            "the same command lists remaining jobs and submits failed ones again; scancel of a job cancels those after it"
        )

    def has_queued_jobs(self, folder: CycleFolder) -> bool:
        """Return whether jobs of an earlier submission wait or run, and list them.

        It is called without the lock, because a running job holds it.
        """
        queued = self._queued_jobs(folder)
        if queued:
            listed = "\n".join(f"  {number}  {name}: {state}" for number, (name, state) in queued.items())
            console.print(f"{folder.path}: these jobs are in the queue, nothing was submitted\n{listed}")
        return bool(queued)

    def _submit(self, cycle: Cycle, action: Action, earlier_jobs: Sequence[str]) -> str:
        """Submit the job of an action and return its number."""
        script = cycle.folder.jobs / f"{_file_stem(action)}.sbatch"
        atomic_write_bytes(script, self.script(cycle.folder, action).encode())
        dependency = [f"--dependency=afterok:{earlier_jobs[-1]}"] if earlier_jobs else []
        command = ["sbatch", "--parsable", *dependency, str(script)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError("sbatch was not found: use runner=local, which needs no SLURM") from error
        if result.returncode:
            if earlier_jobs:
                subprocess.run(["scancel", *earlier_jobs], check=False)  # noqa: S607
            raise ConfigError(f"sbatch rejects {script}: {result.stderr.strip()}; the jobs before it were cancelled")
        return result.stdout.strip().partition(";")[0]

    def script(self, folder: CycleFolder, action: Action) -> str:
        """Return the job script of an action."""
        name = f"{folder.path.name}:{action.name}"
        log = folder.jobs.absolute() / f"{_file_stem(action)}-%j.log"
        fixed = {"job-name": name, "output": log, "open-mode": "append", "kill-on-invalid-dep": "yes"}
        options = {**fixed, **self._site_options, **self._sbatch.get("all", {}), **self._sbatch.get(action.kind, {})}
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
        command = [sys.executable, "-m", "data_engine.cycle", "step", f"run={folder.path}", f"name={action.name}"]
        return SCRIPT.format(
            name=name,
            options="\n".join([*lines, "#SBATCH --requeue"]),
            setup="\n".join(self._setup),
            command=shlex.join(command),
        )

    def _queued_jobs(self, folder: CycleFolder) -> dict[str, tuple[str, str]]:
        """Return the jobs of an earlier submission that wait or run: number -> name of the action, and state."""
        jobs = folder.read_submitted_jobs()
        if not jobs:
            return {}
        command = ["squeue", "--noheader", "--me", "--format", "%A %T"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            message = "squeue was not found, but jobs were submitted for this run: start the command on a SLURM machine"
            raise ConfigError(message) from error
        if result.returncode:
            raise ConfigError(f"squeue cannot list the jobs of this cycle: {result.stderr.strip()}; try again")
        states = dict(line.split(None, 1) for line in result.stdout.splitlines() if line.strip())
        return {number: (name, states[number]) for number, name in jobs.items() if number in states}


def launcher_in_job(folder: CycleFolder, lock: IO[str]) -> ProcessLauncher:
    """Return the launcher for an action. In a SLURM job a training runs under srun, on the job's nodes and tasks."""
    if "SLURM_JOB_ID" not in os.environ:
        return ProcessLauncher(folder, lock)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the training receives them too, and handles them
        signal.signal(number, lambda *_: None)
    srun = ["srun", "--kill-on-bad-exit=0"]
    return ProcessLauncher(folder, lock, training_prefix=srun, training_overrides=job_device_overrides())


def job_device_overrides() -> list[str]:
    """Return the overrides that give a training one device per task of its job."""
    nodes = os.environ.get("SLURM_NNODES", "1")
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return [f"trainer.num_nodes={nodes}", f"trainer.devices={tasks}"]


def _file_stem(action: Action) -> str:
    return action.name.replace("/", "-")
