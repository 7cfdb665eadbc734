"""Prompts from the arguments of released predictors (segment_anything, SAM 2), which describe one object or several."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam_train.inference.argument_checks import invalid
from sam_train.inference.prompt_arrays import (
    Array,
    check_lengths,
    combine_prompts,
    parse_boxes,
    parse_labels,
    parse_mask_logits,
    parse_points,
)
from sam_train.structures import Prompts


def released_prompts(
    point_coords: Array | None,
    point_labels: Array | None,
    box: Array | None,
    mask_input: Array | None,
    *,
    scale_xy: tuple[float, float] = (1.0, 1.0),
    box_name: str = "box",
    image_index: int = 0,
) -> Prompts:
    """Return B prompts, B = 1 for one object, on the CPU or the device of the arguments.

    point_coords: P x 2 for one object, B x P x 2 for B objects. point_labels: P or B x P. box: 4 numbers for one object, B x 4.
    mask_input: 1 x h x h for one object, B x 1 x h x h. scale_xy: factors that make pixels of all coordinates.
    box_name: name of the argument `box`, for messages.

    Without any of them there is one prompt without points, for which the released decoder predicts a mask, too.

    Raises ValueError, with the argument's name, for other shapes and values.
    """
    parts: dict[str, Tensor] = {}
    if point_coords is not None:
        if point_labels is None:
            raise ValueError("point_labels must be given with point_coords: 1 for foreground, 0 for background")
        points = parse_points("point_coords", point_coords)
        labels = parse_labels("point_labels", point_labels, tuple(points.shape[:-1]))
        if points.shape[-2]:
            parts["point_coords"], parts["point_labels"] = (points, labels) if points.ndim == 3 else (points[None], labels[None])
    elif point_labels is not None:
        raise ValueError("point_labels was given without point_coords: give both or none")
    if box is not None:
        shape = tuple(np.shape(box) if not isinstance(box, Tensor) else box.shape)
        if shape != (4,) and (len(shape) != 2 or shape[1] != 4):
            raise invalid(box_name, "4 numbers or of shape B x 4: left, top, right, bottom in pixels", shape)
        parts["box"] = parse_boxes(box_name, _with_batch_axis(box, 2))
    if mask_input is not None:
        parts["mask_input"] = parse_mask_logits("mask_input", _with_batch_axis(mask_input, 4))
    num = check_lengths(parts) if parts else 1
    device = next((tensor.device for tensor in parts.values()), torch.device("cpu"))
    scale = torch.tensor(scale_xy, device=device)
    moved = {name: tensor.to(device) for name, tensor in parts.items()}
    return combine_prompts(
        torch.full((num,), image_index, device=device),
        points_xy=moved["point_coords"] * scale if "point_coords" in moved else None,
        point_labels=moved.get("point_labels"),
        boxes_xyxy=moved["box"] * scale.repeat(2) if "box" in moved else None,
        mask_logits=moved.get("mask_input"),
    )


def per_image(name: str, values: Any, num_images: int) -> list[Any]:
    """Return the entry of each image, None for all if `values` is None. Raises ValueError for another number of entries."""
    if values is None:
        return [None] * num_images
    if not isinstance(values, list | tuple) or len(values) != num_images:
        got = f"{type(values).__name__} of length {len(values)}" if hasattr(values, "__len__") else type(values).__name__
        raise ValueError(f"{name} must be a list with one entry for each of the {num_images} images that were set, got {got}")
    return list(values)


def _with_batch_axis(value: Array, ndim: int) -> Array:
    """Return the array of one object, one axis short of `ndim`, with a batch axis; any other array unchanged."""
    array = value if isinstance(value, Tensor) else np.asarray(value)
    return array[None] if array.ndim == ndim - 1 else array
