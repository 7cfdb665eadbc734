"""NoC: how many clicks a mask needs until it is good (Xu et al. 2016; RITM, Sofiiuk et al. 2021, `compute_noc_metric`)."""

from __future__ import annotations

from collections.abc import Sequence


def number_of_clicks(ious: Sequence[Sequence[float]], threshold: float, max_clicks: int) -> tuple[float, int]:
    """The mean over masks of the first click after which IoU is at least `threshold`, and how many masks never were so good.

    ious: of each mask after click 1, 2 ..., shorter where nobody clicked on. A mask that never is good counts `max_clicks`.
    The mean is 0 for no masks.
    """
    first = [next((k for k, iou in enumerate(mask, start=1) if iou >= threshold), None) for mask in ious]
    needed = [max_clicks if k is None else k for k in first]
    return sum(needed) / max(1, len(needed)), sum(k is None for k in first)
