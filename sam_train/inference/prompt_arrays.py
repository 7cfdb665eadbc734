"""Prompts from NumPy arrays, tensors and lists, with checks of every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from sam_train.inference.argument_checks import invalid
from sam_train.structures import PointLabel, Prediction, Prompts

Array = ArrayLike | Tensor
_LABELS = f"integers from {min(PointLabel)} to {max(PointLabel)} (1 foreground, 0 background)"


def make_prompts(
    *,
    points_xy: Array | None = None,
    point_labels: Array | None = None,
    boxes_xyxy: Array | None = None,
    mask_logits: Array | None = None,
    text_embeddings: Array | None = None,
    image_index: Array | None = None,
    device: torch.device | str = "cpu",
) -> Prompts:
    """Build N prompts from arrays; each prompt combines the parts that are given, and gets its own masks.

    points_xy: N x 2, one point per prompt, or N x P x 2; x and y in pixels of the image frame.
    point_labels: N or N x P, 1 for foreground and 0 for background (`PointLabel`); foreground if omitted.
    boxes_xyxy: N x 4, left, top, right, bottom in pixels of the image frame; right and bottom are the last pixels inside.
    mask_logits: N x 1 x h x w on the decoder's grid, usually the `mask_logits` of an earlier prediction;
        `Predictor.mask_to_logits` makes them from a binary mask.
    text_embeddings: N x E, unit norm, of the text encoder with which the model was trained.
    image_index: N, the index of each prompt's image if several images were set; 0 if omitted.
    device: where the tensors are; a predictor moves them to its own.

    Raises ValueError, with the argument's name, for a value or shape other than described, for parts of different lengths N,
    and without points, boxes and text embeddings. Prompts with different numbers of points are separate `Prompts`:
    `Predictor.predict_prompts` accepts a list of them.

    Example:

        make_prompts(points_xy=[[320, 240], [80, 60]])                            # two prompts, one point each
        make_prompts(points_xy=[[[320, 240], [9, 9]]], point_labels=[[1, 0]])     # one prompt, two points
        make_prompts(boxes_xyxy=[[10, 20, 200, 120]])                             # one box
    """
    if points_xy is None and boxes_xyxy is None and text_embeddings is None:
        raise ValueError("a prompt needs points_xy, boxes_xyxy or text_embeddings: a mask alone does not identify an object")
    parsed: dict[str, Tensor] = {}
    if points_xy is not None:
        points = parse_points("points_xy", points_xy)
        parsed["points_xy"] = points[:, None] if points.ndim == 2 else points
        if point_labels is not None:
            labels = parse_labels("point_labels", point_labels, tuple(points.shape[:-1]))
            parsed["point_labels"] = labels[:, None] if labels.ndim == 1 else labels
    elif point_labels is not None:
        raise ValueError("point_labels was given without points_xy: give both or none")
    parts: dict[str, tuple[Array | None, Callable[[str, Any], Tensor]]] = {
        "boxes_xyxy": (boxes_xyxy, parse_boxes),
        "mask_logits": (mask_logits, parse_mask_logits),
        "text_embeddings": (text_embeddings, _parse_text_embeddings),
        "image_index": (image_index, _parse_image_index),
    }
    parsed |= {name: parse(name, array) for name, (array, parse) in parts.items() if array is not None}
    num, tensors = check_lengths(parsed), {name: tensor.to(device) for name, tensor in parsed.items()}
    return combine_prompts(tensors.pop("image_index", torch.zeros(num, dtype=torch.long, device=device)), **tensors)


def check_lengths(parts: Mapping[str, Tensor]) -> int:
    """Return the number of rows that all parts have, one per prompt. Raises ValueError if they differ."""
    lengths = {name: len(tensor) for name, tensor in parts.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected all parts of the prompts to have the same length, one row per prompt, got {lengths}")
    return next(iter(lengths.values()))


def combine_prompts(
    image_index: Int[Tensor, " N"],
    *,
    points_xy: Float[Tensor, "N P 2"] | None = None,
    point_labels: Int[Tensor, "N P"] | None = None,
    boxes_xyxy: Float[Tensor, "N 4"] | None = None,
    mask_logits: Float[Tensor, "N 1 h w"] | None = None,
    text_embeddings: Float[Tensor, "N E"] | None = None,
) -> Prompts:
    """Return prompts of tensors that have passed the checks; without points and boxes a prompt has no point at all."""
    num, device = len(image_index), image_index.device
    points = torch.zeros(num, 0, 2, device=device) if points_xy is None else points_xy
    labels = torch.full(points.shape[:2], PointLabel.FOREGROUND, device=device) if point_labels is None else point_labels
    if boxes_xyxy is not None:
        prompts = Prompts.from_boxes(image_index, boxes_xyxy)
        for point in range(points.shape[1]):
            prompts = prompts.with_point(points[:, point], labels[:, point], None)
    elif points_xy is None and text_embeddings is None:
        prompts = Prompts(image_index=image_index, points_xy=points, point_labels=labels.long())
    else:
        prompts = Prompts.from_points(image_index, points, labels)
    return replace(prompts, mask_logits=mask_logits, text_embeddings=text_embeddings)


def click_prompts(points_xy: Float[Tensor, "N 2"]) -> Prompts:
    """Return N prompts of one foreground point each, for the image with index 0. Points are in the image frame."""
    return make_prompts(points_xy=points_xy, device=points_xy.device)


def predict_in_groups(prompts: Sequence[Prompts], predict: Callable[[Prompts], Prediction]) -> Prediction:
    """Predict prompts with different numbers of points: `predict` is called once for each group of the same parts.

    Padding a prompt with more points than its own would change its prediction. Rows of the result are in the order of `prompts`.
    Raises ValueError for anything but a list of at least one `Prompts`.
    """
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(prompt, Prompts) for prompt in prompts):
        raise invalid("prompts", "Prompts (make_prompts builds them) or a list of them", prompts)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        parts = prompt.points_xy.shape[1], prompt.mask_logits is None, prompt.text_embeddings is None
        groups.setdefault(parts, []).append(i)
    first_rows = np.cumsum([0, *(len(prompt) for prompt in prompts)])
    predictions = [predict(Prompts.concatenate([prompts[i] for i in group])) for group in groups.values()]
    order = np.concatenate([np.arange(first_rows[i], first_rows[i + 1]) for group in groups.values() for i in group])
    rows = torch.from_numpy(order.argsort())
    logits, scores = (torch.cat([getattr(p, name) for p in predictions]) for name in ("mask_logits", "iou_scores"))
    return Prediction(mask_logits=logits[rows.to(logits.device)], iou_scores=scores[rows.to(scores.device)])


def parse_points(name: str, value: Array) -> Float[Tensor, "... 2"]:
    """Return points as float32, N x 2 or N x P x 2. Raises ValueError for another shape, NaN and infinite coordinates."""
    points = _parse_numbers(name, value)
    if points.ndim not in (2, 3) or points.shape[-1] != 2:
        raise invalid(name, "of shape N x 2 or N x P x 2, x and y in pixels", _shape(points))
    return points


def parse_labels(name: str, value: Array, shape: tuple[int, ...]) -> Int[Tensor, "..."]:
    """Return point labels as integers. Raises ValueError for another shape than `shape`, and for values that are no label."""
    labels = _parse_numbers(name, value)
    if tuple(labels.shape) != shape:
        raise invalid(name, f"one label for each point, of shape {' x '.join(map(str, shape))}", _shape(labels))
    wrong = labels[(labels != labels.round()) | (labels < min(PointLabel)) | (labels > max(PointLabel))]
    if len(wrong):
        raise invalid(name, _LABELS, round(float(wrong[0]), 6))
    return labels.long()


def parse_boxes(name: str, value: Array) -> Float[Tensor, "N 4"]:
    """Return boxes as float32, N x 4. Raises ValueError for another shape and for corners in the wrong order."""
    boxes = _parse_numbers(name, value)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise invalid(name, "of shape N x 4: left, top, right, bottom in pixels", _shape(boxes))
    swapped = boxes[(boxes[:, :2] > boxes[:, 2:]).any(1)]
    if len(swapped):
        expected = "left, top, right, bottom with left <= right and top <= bottom (not left, top, width, height)"
        raise invalid(name, expected, swapped[0].tolist())
    return boxes


def parse_mask_logits(name: str, value: Array) -> Float[Tensor, "N 1 h w"]:
    """Return mask prompts as float32. Raises ValueError for another shape and for binary masks."""
    array = value if isinstance(value, Tensor) else np.asarray(value)
    if "float" not in str(array.dtype):
        raise invalid(name, "logits of float, which Predictor.mask_to_logits makes from a binary mask", got=str(array.dtype))
    logits = _parse_numbers(name, value)
    if logits.ndim != 4 or logits.shape[1] != 1 or logits.shape[2] != logits.shape[3]:
        raise invalid(name, "logits of shape N x 1 x h x h on the decoder's grid", _shape(logits))
    return logits


def _parse_text_embeddings(name: str, value: Array) -> Float[Tensor, "N E"]:
    embeddings = _parse_numbers(name, value)
    if embeddings.ndim != 2:
        raise invalid(name, "of shape N x E", _shape(embeddings))
    return embeddings


def _parse_image_index(name: str, value: Array) -> Int[Tensor, " N"]:
    index = _parse_numbers(name, value)
    wrong = index[(index != index.round()) | (index < 0)]
    if index.ndim != 1 or len(wrong):
        raise invalid(name, "one index of an image, 0 or more, for each prompt", index.tolist())
    return index.long()


def _parse_numbers(name: str, value: Array) -> Float[Tensor, "..."]:
    """Return finite numbers as float32 on the device of `value`, the CPU for an array."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, np.float32))
    except (TypeError, ValueError) as error:
        raise invalid(name, "an array of numbers, rows of equal length", value) from error
    tensor = tensor.detach().float()
    if not bool(tensor.isfinite().all()):
        raise invalid(name, "finite", tensor[~tensor.isfinite()][0].item())
    return tensor


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
