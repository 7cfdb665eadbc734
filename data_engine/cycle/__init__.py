"""Turn the engine: annotate, train, evaluate, promote, and again with the better model.

    sam-cycle experiment=quickstart                       every step a process, one after the other
    sam-cycle experiment=quickstart runner=slurm           every step a job that waits for the one before it
    sam-cycle rollback run=RUN step=STEP reason=WHY       an earlier model works again
    sam-cycle ledger run=RUN                              who, which model and which prompts made each mask
    sam-cycle ablation run=RUN                            what the stages' masks are worth, each set without the others

A step leaves complete files or none, so the cycle can be killed at any moment and started again: what is done is passed
over, what was begun goes on. It knows nothing but files:

    runs/<name>/
      config.yaml
      corpus/                      train/ and heldout/, when the corpus is made here
      corpus.json                  what the corpus holds, and that none of it is held out
      0_start/                     the model that it began with, if any
      1_assisted_manual/           shards/, train/, evaluation.json; or left_out.json, when a budget was spent
      2_...
      promoted.json                the model that works now, and all verdicts
      clock.json                   how long each process ran
      jobs/, jobs.json             scripts, logs and numbers of jobs (runner=slurm)
      model.pt                     a copy of the promoted model
      report.json, report.html

command.py   the words after sam-cycle        turn.py       what each step is told, and when it is done
run.py       check, lock, refuse              processes.py  steps as processes, and their clock
corpus.py    compose, count, nothing leaked   jobs.py       steps as SLURM jobs
budget.py    when a stage has had enough      masks.py      the ledger of masks
ablation.py  stages against each other
"""

from data_engine.cycle.slurm_runner import SlurmRunner
from data_engine.cycle.subprocess_runner import SubprocessRunner

__all__ = ["SlurmRunner", "SubprocessRunner"]
