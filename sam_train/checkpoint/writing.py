"""Write checkpoints, of this project and for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from sam_train.checkpoint.comparison import HALF_TOLERANCE, TOLERANCE, check_same_predictions
from sam_train.checkpoint.loading import load_checkpoint
from sam_train.checkpoint.reading import FORMAT, METADATA_KEY
from sam_train.errors import CheckpointError
from sam_train.files import atomic_write, move_file
from sam_train.model import Sam, huggingface
from sam_train.model.sam import PIXEL_MEAN, PIXEL_STD
from sam_train.model.transformer import TwoWayBlock
from sam_train.model.weights import TEXT_PREFIX, NamingScheme, detect_naming_scheme, infer_config

HUGGING_FACE_WEIGHTS = "model.safetensors"


def save_checkpoint(path: Path, model: Sam, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the model with its config and provenance atomically."""
    atomic_torch_save(
        path, {"format": FORMAT, "model": _cpu_state_dict(model), "config": dict(config), "provenance": dict(provenance)}
    )


def save_safetensors(
    path: Path, model: Sam, config: Mapping[str, Any], provenance: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write the model as one safetensors file, with config and provenance as JSON in its metadata.

    half: store the weights as float16, in half the size; they are read as float32.

    The file is read back and its predictions are compared with the model's before it replaces `path`. Raises CheckpointError if
    they differ by more than rounding, or if a weight exceeds the range of float16.
    """
    state = _cpu_state_dict(model)
    if half:
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        if too_large := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
            raise CheckpointError(
                f"the weights {', '.join(too_large[:5])} exceed the range of float16: write them with half=false"
            )
    document = {"format": FORMAT, "config": dict(config), "provenance": dict(provenance)}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(document)}  # transformers requires the former
    with _verified(path, model, half=half) as draft:
        draft.write_bytes(safetensors.torch.save(state, metadata))


def atomic_torch_save(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` with `torch.save`, atomically. Raises OSError if writing fails."""
    try:
        with atomic_write(path) as stream:
            torch.save(document, stream)
    except RuntimeError as error:  # on a full disk torch fails again when it closes the file, and hides the OSError
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def export_weights(model: Sam, path: Path) -> None:
    """Write the bare weights in the format of another program, which the suffix of `path` selects.

    ".pth": one file with the tensor names of segment-anything (or MobileSAM). No suffix: a folder that
    `transformers.SamModel.from_pretrained` and `SamProcessor.from_pretrained` read.
    The projection of text embeddings is dropped, because no other program reads it; points and boxes are not affected.

    What was written is read back and its predictions are compared with the model's before it replaces `path`.
    Raises ValueError for another suffix, and CheckpointError for a model that the format cannot represent.
    """
    remedy = "readers of other programs do not support that; use format=safetensors, onnx or pt"
    if model.mask_decoder.iou_sigmoid:
        raise CheckpointError(f"the model applies a sigmoid to its IoU scores: {remedy}")
    if model.mask_decoder.iou_from_masks:
        raise CheckpointError(f"the model computes its IoU scores also from statistics of the masks: {remedy}")
    if model.pixel_statistics != "released":
        raise CheckpointError(f"the model normalises pixels by each image's own mean and standard deviation: {remedy}")
    if path.suffix not in ("", ".pth"):
        raise ValueError(f"{path.name} has suffix {path.suffix}: expected .pth, or none for a Hugging Face folder")
    state = {name: tensor for name, tensor in _cpu_state_dict(model).items() if not name.startswith(TEXT_PREFIX)}
    with _verified(path, model) as draft:
        if path.suffix:
            torch.save(state, draft)
        else:
            _write_huggingface(model, state, draft)


def _write_huggingface(model: Sam, state: dict[str, Tensor], folder: Path) -> None:
    if detect_naming_scheme(state) is not NamingScheme.SEGMENT_ANYTHING or "image_encoder.blocks.0.attn.rel_pos_h" not in state:
        expected = "transformers.SamModel has a ViT encoder with a linear patch embedding and relative positions"
        raise CheckpointError(f"this model cannot be written for Hugging Face: {expected}; write .pth or .safetensors instead")
    heads = cast(TwoWayBlock, model.mask_decoder.transformer.layers[0]).self_attn.num_heads
    config = huggingface.sam_model_config(infer_config(state, origin="this model", decoder_heads=heads))
    processor = huggingface.sam_processor_config(model.image_size, model.logits_size, PIXEL_MEAN, PIXEL_STD)
    folder.mkdir()
    for name, document in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(document, indent=1) + "\n")
    weights = safetensors.torch.save(huggingface.convert_to_huggingface(state), {"format": "pt"})
    (folder / HUGGING_FACE_WEIGHTS).write_bytes(weights)


@contextmanager
def _verified(path: Path, model: Sam, *, half: bool = False) -> Iterator[Path]:
    """Let the block write a draft; read it back, compare it with `model`, and move it to `path`, a folder's weights last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        draft = Path(temporary) / path.name
        yield draft
        try:
            loaded = load_checkpoint(draft)
        except CheckpointError as error:
            remedy = "this format cannot hold the model: use format=safetensors or format=pt"
            raise CheckpointError(f"{path} could not be read back ({error}): {remedy}") from error
        check_same_predictions(loaded, model, tolerance=HALF_TOLERANCE if half else TOLERANCE, origin=str(path))
        if draft.is_file():
            move_file(draft, path)
            return
        path.mkdir(exist_ok=True)
        for file in sorted(draft.iterdir(), key=lambda file: file.name == HUGGING_FACE_WEIGHTS):
            move_file(file, path / file.name)


def _cpu_state_dict(model: Sam) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
