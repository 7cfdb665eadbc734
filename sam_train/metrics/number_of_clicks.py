"""NoC, the number of clicks until a mask reaches an IoU (Xu et al. 2016; RITM, Sofiiuk et al. 2021, `compute_noc_metric`)."""

from __future__ import annotations

from collections.abc import Sequence


def number_of_clicks(ious: Sequence[Sequence[float]], threshold: float, max_clicks: int) -> tuple[float, int]:
    """Return the mean number of clicks until the IoU is at least `threshold`, and the number of masks that never reach it.

    ious: IoUs of each mask after click 1, 2 ...; a list may end early. A mask that never reaches the threshold counts
    `max_clicks`. The mean is 0 if there are no masks.
    """
    first = [next((k for k, iou in enumerate(mask, start=1) if iou >= threshold), None) for mask in ious]
    needed = [max_clicks if k is None else k for k in first]
    return sum(needed) / max(1, len(needed)), sum(k is None for k in first)
