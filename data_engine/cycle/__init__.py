"""The data-engine loop: annotate, train, evaluate and promote, step after step, each with the best model so far.

    sam-cycle experiment=quickstart                        run every action as a process, one after the other
    sam-cycle experiment=quickstart runner=slurm           submit every action as a SLURM job that waits for the one before it
    sam-cycle rollback run=RUN step=STEP reason=WHY        promote the model of an earlier step again
    sam-cycle ledger run=RUN                               list the annotator, model and prompts of each mask
    sam-cycle ablation run=RUN                             train on the masks of some stages only, and compare the models

Every action writes complete files or none, so the loop can be killed at any moment. Start the same command again: finished
actions are skipped and an unfinished one resumes. All state is in the files of the run folder, which
`data_engine.cycle_folder` describes.

command.py            handlers of sam-cycle and its subcommands
run_cycle.py          checks the config, locks the run folder, starts the loop
pipeline.py           the actions of a loop: their overrides, and how a finished one is recognised
subprocess_runner.py  actions as processes on this machine, and their run times
slurm_runner.py       actions as SLURM jobs
corpus.py             composes and counts the corpus, and checks that no held-out image is in it
budget.py             ends a stage whose budget is spent
provenance_table.py   the table of masks that `sam-cycle ledger` writes
ablation.py           the paper's ablation of the stages
"""

from data_engine.cycle.slurm_runner import SlurmRunner
from data_engine.cycle.subprocess_runner import SubprocessRunner

__all__ = ["SlurmRunner", "SubprocessRunner"]
