"""Drivers distribute the slices of a run to workers. The shards have the same names and bytes with every driver.

base.py          the driver interface, the queue of slices
local.py         processes on this machine; worker_pool.py runs and replaces them
slurm.py         a SLURM job array through submitit
ray.py           tasks of a Ray cluster
progress.py      the progress bar and the log lines

Any other scheduler that can count from 0 to N - 1 needs no driver: it starts N commands, each with its `slice=I/N`.
`kubernetes.yaml` in this folder is an indexed job that does so.
"""

from data_engine.drivers.base import Driver, ProgressDisplay
from data_engine.drivers.local import LocalDriver
from data_engine.drivers.ray import RayDriver
from data_engine.drivers.slurm import SlurmDriver

__all__ = ["Driver", "LocalDriver", "ProgressDisplay", "RayDriver", "SlurmDriver"]
