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


def world() -> tuple[int, int]:
    """(rank of this process, number of processes) of the run; (0, 1) for one that is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Tally:
    """Counts and losses of one step, as sums over masks: sums of several processes add up, means do not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts = torch.zeros(len(COUNTS))
        self._rounds: list[Tensor] = []

    def count(self, batch: Batch, *, stop: bool = False) -> None:
        """Images and masks of a batch that go into the step. stop: this process was asked to leave after it."""
        self._counts += torch.tensor([len(batch.image_index), len(batch.keys), len(batch.skipped), float(stop)])

    def add(self, index: int, terms: LossTerms) -> None:
        """The losses of a round over some of the step's masks."""
        means = torch.stack([terms.total.detach(), terms.focal, terms.dice, terms.iou])
        sums = torch.cat([means * len(terms.true_iou), terms.true_iou.sum()[None], terms.predicted_iou.sum()[None]])
        if index == len(self._rounds):
            self._rounds.append(torch.zeros_like(sums))
        self._rounds[index] += sums

    def added_up(self) -> StepSums:
        """Over all processes; the one exchange of small numbers in a step. Every process must come here."""
        sums = torch.cat([self._counts.to(self._device), *self._rounds])
        here = sums.clone()
        if world()[1] > 1:
            distributed.all_reduce(sums)
        return StepSums(sums, here)


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums of a step over all processes, and those of this one."""

    sums: Float[Tensor, " k"]
    here: Float[Tensor, " k"]

    @property
    def num_masks(self) -> Float[Tensor, ""]:
        """Of all processes; stays on the device, so that dividing by it waits for nothing."""
        return self.sums[0]

    @property
    def stop(self) -> bool:
        """Whether a process was asked to leave: then all do, after this step."""
        return bool(self.sums[COUNTS.index("stop")] > 0)

    @property
    def is_finite(self) -> bool:
        """Whether every loss of every process is a number."""
        return bool(self.sums.isfinite().all())

    @property
    def is_finite_here(self) -> bool:
        """Whether every loss of this process is a number."""
        return bool(self.here.isfinite().all())

    def metrics(self) -> dict[str, Tensor]:
        """Means over all masks of the step, and over its rounds where the name does not say which."""
        masks, images, skipped, _ = self.sums[: len(COUNTS)].unbind()
        rounds = self.sums[len(COUNTS) :].view(-1, len(PER_ROUND)) / masks
        values = dict(zip(PER_ROUND[:4], rounds.mean(0)[:4].unbind(), strict=True))
        values |= {"iou_first_round": rounds[0, 4], "iou_last_round": rounds[-1, 4]}
        values |= {"predicted_iou_first_round": rounds[0, 5], "predicted_iou_last_round": rounds[-1, 5]}
        values |= {f"loss_round_{index}": loss for index, loss in enumerate(self.losses_of_rounds().unbind(), start=1)}
        return values | {"masks_per_image": masks / images, "skipped": skipped}

    def losses_of_rounds(self) -> Float[Tensor, " R"]:
        """Mean loss over the step's masks, for each round."""
        return self.sums[len(COUNTS) :].view(-1, len(PER_ROUND))[:, 0] / self.num_masks
