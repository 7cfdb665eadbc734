"""Prompts from NumPy arrays and tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sam_train.structures import PointLabel, Prompts

Array = np.ndarray | Tensor


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
    mask_logits: N x 1 x h x w on the decoder's grid, usually the `mask_logits` of an earlier prediction.
    text_embeddings: N x E, unit norm, of the text encoder with which the model was trained.
    image_index: N, the index of each prompt's image if several images were set; 0 if omitted.
    device: that of the predictor.

    Raises ValueError without points, boxes and text embeddings, and if the parts have different lengths N.

    Example:

        make_prompts(points_xy=np.array([[320, 240], [80, 60]]))                                  # two prompts, one point each
        make_prompts(points_xy=np.array([[[320, 240], [9, 9]]]), point_labels=np.array([[1, 0]]))  # one prompt, two points
        make_prompts(boxes_xyxy=np.array([[10, 20, 200, 120]]))                                   # one box
    """
    if points_xy is None and boxes_xyxy is None and text_embeddings is None:
        raise ValueError("a prompt needs points_xy, boxes_xyxy or text_embeddings: a mask alone does not identify an object")
    parts = {"points_xy": points_xy, "point_labels": point_labels, "boxes_xyxy": boxes_xyxy}
    parts |= {"mask_logits": mask_logits, "text_embeddings": text_embeddings, "image_index": image_index}
    tensors = {name: torch.as_tensor(array, device=device) for name, array in parts.items() if array is not None}
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected all parts of the prompts to have the same length, one row per prompt, got {lengths}")
    num = next(iter(lengths.values()))
    index = tensors.get("image_index", torch.zeros(num, device=device)).long()
    points = tensors.get("points_xy", torch.zeros(num, 0, 2, device=device)).float()
    points = points[:, None] if points.ndim == 2 else points
    labels = tensors.get("point_labels", torch.full(points.shape[:2], PointLabel.FOREGROUND, device=device)).long()
    labels = labels[:, None] if labels.ndim == 1 else labels
    prompts = _combine(index, points, labels, tensors.get("boxes_xyxy"))
    prompts = replace(prompts, text_embeddings=tensors["text_embeddings"].float()) if "text_embeddings" in tensors else prompts
    return prompts.with_mask(tensors["mask_logits"].float()) if "mask_logits" in tensors else prompts


def _combine(
    index: Int[Tensor, " N"],
    points: Float[Tensor, "N P 2"],
    labels: Int[Tensor, "N P"],
    boxes: Tensor | None,
) -> Prompts:
    """Return prompts of points or, with `boxes`, of boxes with additional points."""
    if boxes is None:
        return Prompts.from_points(index, points, labels)
    prompts = Prompts.from_boxes(index, boxes.float())
    for point in range(points.shape[1]):
        prompts = prompts.with_point(points[:, point], labels[:, point], None)
    return prompts


def click_prompts(points_xy: Float[Tensor, "N 2"]) -> Prompts:
    """Return N prompts of one foreground point each, for the image with index 0. Points are in the image frame."""
    return make_prompts(points_xy=points_xy, device=points_xy.device)
