"""How several processes share a run: who starts them, who keeps what of the optimiser, what a checkpoint is made of.

Whatever the strategy, a step adds up its gradients in training/gradients.py, and a checkpoint is one file with everything in
it, the same as that of one process: a run goes on with another strategy, and on another number of devices.
"""

from __future__ import annotations

from pytorch_lightning.strategies import DDPStrategy
from typing_extensions import override


class Replicated(DDPStrategy):
    """Each process has the whole model and the whole optimiser.

    Lightning's DDP starts and places the processes. The model is not wrapped in DistributedDataParallel, which would sum
    gradients in each of a step's many backward passes; `sum_gradients` does it once.
    """

    @override
    def configure_ddp(self) -> None:
        """Nothing is wrapped."""
