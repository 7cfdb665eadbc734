"""Comparison of a written ONNX file with the model in torch, on random prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from sam_train.errors import CheckpointError
from sam_train.geometry import Resize
from sam_train.inference.export.decoder import AMBIGUOUS_BELOW, FORBIDDEN, ExportOptions, embedding_channels
from sam_train.masks import stability_score
from sam_train.model import Sam
from sam_train.structures import PointLabel, Prompts

Arrays = dict[str, np.ndarray]
MAX_POINTS = 5
# Largest difference of logits and scores relative to torch's largest value (at least 1), and fraction of differing pixels.
TOLERANCES = {"fp32": (1e-4, 1e-4), "fp16": (5e-2, 5e-3), "uint8": (np.inf, 5e-2)}
ENCODER_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest absolute differences over all inputs, relative to torch's largest value or to 1 if that is smaller.

    mask_difference: that of the logits, or of the image embeddings. score_difference: that of the scores.
    differing_pixels, num_pixels: pixels of full-size masks that differ, and all of them.
    """

    mask_difference: float
    score_difference: float = 0.0
    differing_pixels: int = 0
    num_pixels: int = 0


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU with logging of errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def check_encoder(path: Path, sam: Sam) -> Parity:
    """Compare encoder.onnx with torch on a noise image in portrait format.

    Raises CheckpointError if they differ by more than ENCODER_TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, sam.image_size, sam.image_size), generator=generator, dtype=torch.uint8)
    size_hw = torch.tensor([[sam.image_size, sam.image_size * 2 // 3]])
    expected = sam.encode_images(image, size_hw)
    (actual,) = open_session(path).run(None, {"image": image.numpy(), "size_hw": size_hw.numpy()})
    difference = _relative_difference(torch.from_numpy(actual), expected)
    if not difference <= ENCODER_TOLERANCE:
        raise CheckpointError(
            f"{path.name} differs from torch by {difference:.2g} of the largest value (at most {ENCODER_TOLERANCE:.2g}). "
            "Nothing was written"
        )
    return Parity(mask_difference=difference)


def check_decoder(path: Path, sam: Sam, options: ExportOptions, precision: str) -> Parity:
    """Compare a decoder with torch: 1 to 5 points or a box, with and without a mask, images of three shapes.

    Raises CheckpointError if they differ by more than TOLERANCES[precision].
    """
    session = open_session(path)
    differences = [_difference(session, sam, options, inputs) for inputs in random_inputs(sam, text_input=options.text_input)]
    parity = Parity(
        mask_difference=max(difference.mask_difference for difference in differences),
        score_difference=max(difference.score_difference for difference in differences),
        differing_pixels=sum(difference.differing_pixels for difference in differences),
        num_pixels=sum(difference.num_pixels for difference in differences),
    )
    limit, pixel_fraction = TOLERANCES[precision]
    worst = max(parity.mask_difference, parity.score_difference)
    if not (worst <= limit and parity.differing_pixels <= pixel_fraction * parity.num_pixels):
        raise CheckpointError(
            f"{path.name} differs from torch by {worst:.2g} of the largest value (at most {limit:.2g}) and in "
            f"{parity.differing_pixels} of {parity.num_pixels} pixels (at most {pixel_fraction:.2g} of them). Nothing was written"
        )
    return parity


def random_inputs(sam: Sam, seed: int = 0, *, text_input: bool = False) -> Iterator[Arrays]:
    """Yield inputs of the decoder, the same for the same seed; with `text_input` also text prompts, beside points and alone."""
    random, size, side = np.random.default_rng(seed), sam.image_size, sam.logits_size
    channels, grid = embedding_channels(sam), sam.prompt_encoder.grid_size
    for index, (num_points, with_mask) in enumerate((n, m) for n in range(MAX_POINTS + 1) for m in (0, 1)):
        labels = [*random.integers(0, 2, num_points), PointLabel.PADDING]
        if num_points == 0:
            labels = [PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]
        texts: Arrays = {}
        if text_input:
            text = random.standard_normal((int(num_points % 3 != 1), sam.prompt_encoder.text_dim or 0), np.float32)
            texts = {"text_embeddings": text / np.linalg.norm(text, axis=1, keepdims=True)}
            labels = [PointLabel.PADDING] if num_points == 0 else labels
        hw = ((size, size), (size * 3 // 2, size), (size // 2, size * 2 // 3 + 1))[index % 3]
        yield {
            "image_embeddings": random.standard_normal((1, channels, grid, grid), np.float32),
            "point_coords": np.sort(random.random((1, len(labels), 2), np.float32), axis=1) * size,
            "point_labels": np.array([labels], np.float32),
            "mask_input": random.standard_normal((1, 1, side, side), np.float32) * 4 * with_mask,
            "has_mask_input": np.array([with_mask], np.float32),
            "orig_im_size": np.array(hw, np.float32),
            **texts,
        }


@torch.inference_mode()
def torch_outputs(sam: Sam, options: ExportOptions, inputs: Arrays) -> dict[str, Tensor]:
    """Return masks, iou_predictions and low_res_masks that the model computes in torch for inputs of the ONNX decoder."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    prompts = Prompts(
        image_index=torch.zeros(1, dtype=torch.long),
        points_xy=tensors["point_coords"],
        point_labels=tensors["point_labels"].long(),
        mask_logits=tensors["mask_input"] if tensors["has_mask_input"] > 0 else None,
        text_embeddings=tensors["text_embeddings"] if len(tensors.get("text_embeddings", ())) else None,
    )
    parts = [sam.decode(tensors["image_embeddings"], prompts, multimask_output=multimask) for multimask in (False, True)]
    low, scores = torch.cat([part.mask_logits for part in parts], 1), torch.cat([part.iou_scores for part in parts], 1)
    scores = stability_score(low) if options.use_stability_score else scores
    if options.return_single_mask:
        offset = (prompts.point_labels.shape[1] - AMBIGUOUS_BELOW) * FORBIDDEN
        best = (scores + offset * torch.eye(1, scores.shape[1])).argmax(1)
        low, scores = low[:, best], scores[:, best]
    height, width = (int(side) for side in inputs["orig_im_size"])
    masks = Resize(height, width, sam.image_size).logits_to_image(low)
    return {"masks": masks, "iou_predictions": scores, "low_res_masks": low}


def _difference(session: onnxruntime.InferenceSession, sam: Sam, options: ExportOptions, inputs: Arrays) -> Parity:
    """Return the differences between the session and torch for one set of inputs."""
    expected = torch_outputs(sam, options, inputs)
    actual = {name: torch.from_numpy(a) for name, a in zip(options.output_names, session.run(None, inputs), strict=True)}
    if options.use_stability_score:  # computed from the session's masks, as rounding may move single pixels
        expected["iou_predictions"] = stability_score(actual["low_res_masks"])
    if options.return_extra_metrics:
        expected["stability_scores"] = stability_score(actual["masks"])
        expected["areas"] = (actual["masks"] > 0).sum((-1, -2))
    differences = {name: _relative_difference(actual[name], expected[name]) for name in actual}
    return Parity(
        mask_difference=max(differences.pop("masks"), differences.pop("low_res_masks")),
        score_difference=max(differences.values()),
        differing_pixels=int(((actual["masks"] > 0) != (expected["masks"] > 0)).sum()),
        num_pixels=expected["masks"].numel(),
    )


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return float("inf")
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))
