"""Counts and losses of a training step, summed over its rounds, its passes and the processes that share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from sam_train.data.transforms import DROPPING_OPTIONS
from sam_train.losses import LossTerms
from sam_train.structures import Batch

DROPPED_MASKS = tuple(f"masks_dropped_by_{option}" for option in DROPPING_OPTIONS)
"""Logged names of the numbers of masks that the options of `data` dropped from the images of a step."""

COUNTS = ("masks", "images", "skipped", "preemption_requested", *DROPPED_MASKS)
"""Names of the counts with which the vector of sums begins."""

TERMS_PER_ROUND = ("loss", "focal", "dice", "iou_loss", "true_iou", "predicted_iou")
"""Names of the sums of one round of interactive segmentation."""

FIRST_AND_LAST_ROUND = {"true_iou": "iou", "predicted_iou": "predicted_iou"}
"""Terms that are logged for the first and the last round instead of as a mean over rounds, and their logged names."""


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank of this process, number of processes) of the run; (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class StepMetricsAccumulator:
    """Accumulates the counts and losses of one step in this process.

    Everything is a sum over masks or images, not a mean: the sums of several passes and processes can be added.

    names: names of the sums that are added in each round.
    mean_over: which of COUNTS the logged values are means over.
    """

    def __init__(self, device: torch.device, names: tuple[str, ...] = TERMS_PER_ROUND, *, mean_over: str = "masks") -> None:
        self._device, self._names, self._mean_over = device, names, mean_over
        self._counts = torch.zeros(len(COUNTS))
        self._rounds: list[Tensor] = []

    def add_batch(self, batch: Batch, *, preemption_requested: bool = False) -> None:
        """Count the images and masks of a batch. preemption_requested: this process has received a preemption signal."""
        counts = [len(batch.image_index), len(batch.keys), len(batch.skipped), float(preemption_requested)]
        self._counts += torch.tensor([*counts, *(batch.dropped.get(option, 0) for option in DROPPING_OPTIONS)])

    def add_terms(self, round_index: int, terms: LossTerms) -> None:
        """Add the losses of one round of a pass, as sums over its masks."""
        means = torch.stack([terms.total.detach(), terms.focal, terms.dice, terms.iou])
        sums = torch.cat([means * len(terms.true_iou), terms.true_iou.sum()[None], terms.predicted_iou.sum()[None]])
        self.add(round_index, sums)

    def add(self, round_index: int, sums: Float[Tensor, " k"]) -> None:
        """Add the sums of one round of a pass, one for each name."""
        if round_index == len(self._rounds):
            self._rounds.append(torch.zeros_like(sums))
        self._rounds[round_index] += sums

    def reduce(self) -> ReducedStepMetrics:
        """Return the sums over all processes. Every process must call it: it is the step's one all-reduce beside gradients."""
        sums = torch.cat([self._counts.to(self._device), *self._rounds])
        local_sums = sums.clone()
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        return ReducedStepMetrics(sums, local_sums, self._names, self._mean_over)


@dataclass(frozen=True, slots=True)
class ReducedStepMetrics:
    """Sums of a step over all processes; the vector holds COUNTS, then `names` for each round."""

    sums: Float[Tensor, " k"]
    local_sums: Float[Tensor, " k"]
    """The sums of this process alone."""
    names: tuple[str, ...] = TERMS_PER_ROUND
    mean_over: str = "masks"
    """The one of COUNTS that the means are over."""

    @property
    def count(self) -> Float[Tensor, ""]:
        """Number of masks (or images) of all processes, on the device: dividing by it does not synchronise."""
        return self.sums[COUNTS.index(self.mean_over)]

    @property
    def preemption_requested(self) -> bool:
        """True if any process has received a preemption signal; then all processes end after this step."""
        return bool(self.sums[COUNTS.index("preemption_requested")] > 0)

    @property
    def is_finite(self) -> bool:
        """True if every loss of every process is finite."""
        return bool(self.sums.isfinite().all())

    @property
    def is_finite_locally(self) -> bool:
        """True if every loss of this process is finite."""
        return bool(self.local_sums.isfinite().all())

    def metrics(self) -> dict[str, Tensor]:
        """Return the values to log: means over the step's masks and over its rounds, or of the round that the name states."""
        counts = dict(zip(COUNTS, self.sums[: len(COUNTS)].unbind(), strict=True))
        terms = dict(zip(self.names, self.means_per_round().unbind(1), strict=True))
        values = {name: means.mean() for name, means in terms.items() if name not in FIRST_AND_LAST_ROUND}
        for name, logged in FIRST_AND_LAST_ROUND.items() if FIRST_AND_LAST_ROUND.keys() <= terms.keys() else ():
            values |= {f"{logged}_first_round": terms[name][0], f"{logged}_last_round": terms[name][-1]}
        if len(terms["loss"]) > 1:
            values |= {f"loss_round_{index}": loss for index, loss in enumerate(terms["loss"].unbind(), start=1)}
        values |= {"masks_per_image": counts["masks"] / counts["images"], "skipped": counts["skipped"]}
        return values | {name: counts[name] for name in DROPPED_MASKS}

    def means_per_round(self) -> Float[Tensor, "R k"]:
        """Return the means over the step's masks for each round and name."""
        return self.sums[len(COUNTS) :].view(-1, len(self.names)) / self.count

    def loss_per_round(self) -> Float[Tensor, " R"]:
        """Return the mean loss over the step's masks for each round."""
        return self.means_per_round()[:, 0]
