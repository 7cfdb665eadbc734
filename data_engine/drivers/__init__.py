"""Where slices run. What is done in a slice is the same everywhere: same files, same names, same bytes.

base.py       what the engine expects of a driver
local.py      processes on this machine
slurm.py      a SLURM job array through submitit
ray.py        tasks of a Ray cluster

Anything else that can count from 0 to N - 1 needs no driver: start N commands with `slice=I/N` each. `kubernetes.yaml` in
this folder is an indexed job that does so.
"""

from data_engine.drivers.base import Driver, ProgressDisplay
from data_engine.drivers.local import LocalDriver
from data_engine.drivers.ray import RayDriver
from data_engine.drivers.slurm import SlurmDriver

__all__ = ["Driver", "LocalDriver", "ProgressDisplay", "RayDriver", "SlurmDriver"]
