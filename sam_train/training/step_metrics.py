"""What a step adds up over its rounds, its masks and the processes that share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from sam_train.losses import LossTerms
from sam_train.structures import Batch

COUNTS = ("masks", "images", "skipped", "stop")
PER_ROUND = ("loss", "focal", "dice", "iou_loss", "true_iou", "predicted_iou")
IOUS = {"true_iou": "iou", "predicted_iou": "predicted_iou"}
"""What is logged of the first and of the last round, and the names it has there."""


def rank_and_world_size() -> tuple[int, int]:
    """(rank of this process, number of processes) of the run; (0, 1) for one that is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class StepMetricsAccumulator:
    """Counts and losses of one step, as sums over masks: sums of several processes add up, means do not.

    names: of what is added up in each round.
    per: which of COUNTS it becomes a mean over.
    """

    def __init__(self, device: torch.device, names: tuple[str, ...] = PER_ROUND, *, per: str = "masks") -> None:
        self._device, self._names, self._per = device, names, per
        self._counts = torch.zeros(len(COUNTS))
        self._rounds: list[Tensor] = []

    def count(self, batch: Batch, *, stop: bool = False) -> None:
        """Images and masks of a batch that go into the step. stop: this process was asked to leave after it."""
        self._counts += torch.tensor([len(batch.image_index), len(batch.keys), len(batch.skipped), float(stop)])

    def add_terms(self, index: int, terms: LossTerms) -> None:
        """The losses of a round over some of the step's masks."""
        means = torch.stack([terms.total.detach(), terms.focal, terms.dice, terms.iou])
        self.add(index, torch.cat([means * len(terms.true_iou), terms.true_iou.sum()[None], terms.predicted_iou.sum()[None]]))

    def add(self, index: int, sums: Float[Tensor, " k"]) -> None:
        """Sums of a round, one for each name."""
        if index == len(self._rounds):
            self._rounds.append(torch.zeros_like(sums))
        self._rounds[index] += sums

    def reduce(self) -> ReducedStepMetrics:
        """Over all processes; the one exchange of small numbers in a step. Every process must come here."""
        sums = torch.cat([self._counts.to(self._device), *self._rounds])
        local_sums = sums.clone()
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        return ReducedStepMetrics(sums, local_sums, self._names, self._per)


@dataclass(frozen=True, slots=True)
class ReducedStepMetrics:
    """Sums of a step over all processes, and those of this one; names and `per` as in Tally."""

    sums: Float[Tensor, " k"]
    local_sums: Float[Tensor, " k"]
    names: tuple[str, ...] = PER_ROUND
    per: str = "masks"

    @property
    def count(self) -> Float[Tensor, ""]:
        """Masks of all processes, or what the means are over; stays on the device, so that dividing by it waits for nothing."""
        return self.sums[COUNTS.index(self.per)]

    @property
    def stop(self) -> bool:
        """Whether a process was asked to leave: then all do, after this step."""
        return bool(self.sums[COUNTS.index("stop")] > 0)

    @property
    def is_finite(self) -> bool:
        """Whether every loss of every process is a number."""
        return bool(self.sums.isfinite().all())

    @property
    def is_finite_locally(self) -> bool:
        """Whether every loss of this process is a number."""
        return bool(self.local_sums.isfinite().all())

    def metrics(self) -> dict[str, Tensor]:
        """Means over all masks of the step, and over its rounds where the name does not say which."""
        masks, images, skipped, _ = self.sums[: len(COUNTS)].unbind()
        rounds = dict(zip(self.names, self.rounds().unbind(1), strict=True))
        values = {name: means.mean() for name, means in rounds.items() if name not in IOUS}
        for name, short in IOUS.items() if IOUS.keys() <= rounds.keys() else ():
            values |= {f"{short}_first_round": rounds[name][0], f"{short}_last_round": rounds[name][-1]}
        if len(rounds["loss"]) > 1:
            values |= {f"loss_round_{index}": loss for index, loss in enumerate(rounds["loss"].unbind(), start=1)}
        return values | {"masks_per_image": masks / images, "skipped": skipped}

    def rounds(self) -> Float[Tensor, "R k"]:
        """Means over the step's masks, for each round and name."""
        return self.sums[len(COUNTS) :].view(-1, len(self.names)) / self.count

    def loss_per_round(self) -> Float[Tensor, " R"]:
        """Mean loss over the step's masks, for each round."""
        return self.rounds()[:, 0]
