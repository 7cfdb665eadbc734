"""Steps as SLURM jobs, each waiting for the end of the one before it.

Which model a step works with is known when the step before it has been judged, so a job is told its name only and reads the
rest from the run folder: `sam-cycle step run=RUN name=2_assisted_manual/train`. The folder must be one that all nodes see.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from data_engine.console import console
from data_engine.cycle.pipeline import Action, Cycle
from data_engine.cycle.subprocess_runner import ProcessLauncher
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes

SCRIPT = """#!/bin/bash
# {name}, by sam-cycle runner=slurm; submitted again by the same command when it is not done.
{options}
{setup}
# The script waits for its step, which answers the signals by a checkpoint and code 75.
trap : TERM USR1
{command} &
wait_for=$!
wait "$wait_for"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$wait_for" 2>/dev/null; do # a signal ends bash's wait, not the step
  wait "$wait_for"
  code=$?
done
if [ "$code" -eq 75 ]; then
  echo "asked to leave: job $SLURM_JOB_ID waits for its next turn"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until SLURM takes it away; leaving now would count as its end
fi
exit "$code"
"""


class SlurmRunner:
    """A chain of jobs: a job that fails ends those behind it, and the same command submits what is left.

    partition, account: None leaves them to the site.
    sbatch: options of sbatch for `all` jobs, and for those that `corpus`, `annotate`, `train`, `evaluate` and `report`, by their
        long names; None leaves one out. A training runs under srun, a task for each of its devices.
    setup: lines of shell before Python starts, such as `module load cuda`.
    """

    def __init__(
        self,
        *,
        partition: str | None = None,
        account: str | None = None,
        sbatch: Mapping[str, Mapping[str, Any]] | None = None,
        setup: Sequence[str] | None = None,
    ) -> None:
        kinds = ("all", "corpus", "annotate", "train", "evaluate", "report")
        if unknown := [kind for kind in sbatch or {} if kind not in kinds]:
            raise ConfigError(f"runner.sbatch has {', '.join(unknown)}: expected some of {', '.join(kinds)}")
        self.place = {"partition": partition, "account": account}
        self.sbatch, self.setup = dict(sbatch or {}), list(setup or ())

    def run(self, cycle: Cycle) -> None:
        """Submit what is not done, unless jobs of this cycle are in the queue still.

        Raises ConfigError when there is no SLURM or it does not take a job; those before it are cancelled then.
        """
        if self.has_queued_jobs(cycle.run_dir):
            return
        folder = cycle.run_dir / "jobs"
        folder.mkdir(exist_ok=True)
        jobs: dict[str, str] = {}
        for action in cycle.actions():
            if not cycle.is_done(action):
                jobs[self._submit(cycle, action, list(jobs))] = action.name
        atomic_write_bytes(cycle.run_dir / "jobs.json", (json.dumps(jobs, indent=1) + "\n").encode())
        numbers = list(jobs)
        console.print(f"jobs submitted, one after the other: {', '.join(numbers)}; scripts and logs in {folder}")
        console.print("the same command says which are left, and submits what failed; scancel ends one and those behind it")

    def has_queued_jobs(self, run_dir: Path) -> bool:
        """Whether jobs of an earlier submission wait or run; they are listed then. Asked without the lock, which a job holds."""
        waiting = self._waiting(run_dir)
        if waiting:
            listed = "\n".join(f"  {number}  {name}: {state}" for number, (name, state) in waiting.items())
            console.print(f"{run_dir}: these jobs are in the queue, nothing was submitted\n{listed}")
        return bool(waiting)

    def _submit(self, cycle: Cycle, action: Action, before: Sequence[str]) -> str:
        script = cycle.run_dir / "jobs" / f"{action.name.replace('/', '-')}.sbatch"
        atomic_write_bytes(script, self.script(cycle.run_dir, action).encode())
        wait = [f"--dependency=afterok:{before[-1]}"] if before else []
        try:
            done = subprocess.run(["sbatch", "--parsable", *wait, str(script)], capture_output=True, text=True, check=False)  # noqa: S607
        except FileNotFoundError as error:
            raise ConfigError("there is no sbatch here: runner=local needs no SLURM") from error
        if done.returncode:
            if before:
                subprocess.run(["scancel", *before], check=False)  # noqa: S607
            raise ConfigError(f"sbatch does not take {script}: {done.stderr.strip()}; the jobs before it were cancelled")
        return done.stdout.strip().partition(";")[0]

    def script(self, run_dir: Path, action: Action) -> str:
        """What sbatch is given for an action."""
        name = f"{run_dir.name}:{action.name}"
        log = run_dir.absolute() / "jobs" / f"{action.name.replace('/', '-')}-%j.log"
        fixed = {"job-name": name, "output": log, "open-mode": "append", "kill-on-invalid-dep": "yes"}
        options = {**fixed, **self.place, **self.sbatch.get("all", {}), **self.sbatch.get(action.what, {})}
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
        step = [sys.executable, "-m", "data_engine.cycle", "step", f"run={run_dir}", f"name={action.name}"]
        texts = {"options": "\n".join([*lines, "#SBATCH --requeue"]), "setup": "\n".join(self.setup)}
        return SCRIPT.format(name=name, command=shlex.join(step), **texts)

    def _waiting(self, run_dir: Path) -> dict[str, tuple[str, str]]:
        """Jobs of an earlier submission that wait or run: number -> name and state."""
        path = run_dir / "jobs.json"
        if not path.is_file():
            return {}
        jobs = json.loads(path.read_bytes())
        command = ["squeue", "--noheader", "--me", "--format", "%A %T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigError("there is no squeue here, and jobs were submitted for this run: ask where SLURM is") from error
        if answer.returncode:
            raise ConfigError(f"squeue does not say what is left of this cycle's jobs: {answer.stderr.strip()}; try again")
        states = dict(line.split(None, 1) for line in answer.stdout.splitlines() if line.strip())
        return {number: (name, states[number]) for number, name in jobs.items() if number in states}


def launcher_in_job(run_dir: Path, lock: IO[str]) -> ProcessLauncher:
    """What a job starts its step's process with: a training under srun, with the job's nodes and tasks for devices."""
    if "SLURM_JOB_ID" not in os.environ:
        return ProcessLauncher(run_dir, lock)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the training has them too, and answers
        signal.signal(number, lambda *_: None)
    return ProcessLauncher(run_dir, lock, under=["srun", "--kill-on-bad-exit=0"], devices=job_device_overrides())


def job_device_overrides() -> list[str]:
    """The overrides by which a training has a device for each task of its job."""
    nodes = os.environ.get("SLURM_NNODES", "1")
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return [f"trainer.num_nodes={nodes}", f"trainer.devices={tasks}"]
