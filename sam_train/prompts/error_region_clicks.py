"""Correction clicks in the error region of a prediction: the pixels where prediction and ground truth differ (section A).

A click on a false negative pixel is a foreground point, a click on a false positive pixel a background point. A prediction
without an error has an empty error region; its click is a foreground point in the target instead, which adds no information
but keeps all prompts at the same number of points.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.prompts.rng import PromptRng
from sam_train.prompts.sampling import central_points, sample_uniform_points
from sam_train.structures import PointLabel


def sample_error_region_clicks(
    predictions: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"], rng: PromptRng
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"]]:
    """Draw one pixel uniformly from the error region of each prediction (paper, section A).

    Returns the points (x, y) and their labels. Raises ValueError if a prediction and its target are both empty.
    """
    error_region = predictions ^ targets
    is_perfect = ~error_region.flatten(1).any(1)
    points = sample_uniform_points(torch.where(is_perfect[:, None, None], targets, error_region), rng)
    x, y = points.long().unbind(1)
    in_target = targets[torch.arange(len(targets), device=targets.device), y, x]
    return points, torch.where(in_target, PointLabel.FOREGROUND, PointLabel.BACKGROUND)


def central_error_region_clicks(
    predictions: Bool[Tensor, "N H W"], targets: Bool[Tensor, "N H W"]
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"]]:
    """Return the pixel of each prediction's error region that is farthest from the boundary (paper, section D.1).

    False negatives and false positives are separate regions; false negatives win a tie. Returns the points (x, y) and their
    labels.
    """
    false_negative_xy, false_negative_depth = central_points(targets & ~predictions)
    false_positive_xy, false_positive_depth = central_points(predictions & ~targets)
    is_perfect = (false_negative_depth == 0) & (false_positive_depth == 0)
    if bool(is_perfect.any()):
        false_negative_xy[is_perfect] = central_points(targets[is_perfect])[0]
    is_foreground = false_negative_depth >= false_positive_depth
    points = torch.where(is_foreground[:, None], false_negative_xy, false_positive_xy)
    return points, torch.where(is_foreground, PointLabel.FOREGROUND, PointLabel.BACKGROUND)
