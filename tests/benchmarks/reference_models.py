"""Reference implementations for benchmarks and parity tests."""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sam_train.checkpoint import load_checkpoint


@cache
def segment_anything() -> SimpleNamespace:
    """Return segment_anything's modules modeling, onnx, amg, predictor and automatic_mask_generator, with torchvision stubbed.

    The stubs and modules are removed from sys.modules again, so that other code imports the real packages.
    Raises ImportError that states what to install.
    """
    spec = find_spec("segment_anything")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("needs segment-anything==1.0: pip install '.[dev]'")
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    before = dict(sys.modules)
    sys.modules.update(_torchvision() | {"segment_anything": package})
    names = ("modeling", "utils.onnx", "utils.amg", "predictor", "automatic_mask_generator")
    modules = {name.rpartition(".")[2]: import_module(f"segment_anything.{name}") for name in names}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("segment_anything", "torchvision")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if name.partition(".")[0] == "torchvision"})
    return SimpleNamespace(**modules)


def _torchvision() -> dict[str, ModuleType]:
    """Return stubs of the four torchvision functions that the generator uses; torchvision has no wheel for every tested torch."""
    functional, boxes = ModuleType("torchvision.transforms.functional"), ModuleType("torchvision.ops.boxes")
    functional.__dict__.update(
        to_pil_image=Image.fromarray, resize=lambda image, hw: image.resize((hw[1], hw[0]), Image.Resampling.BILINEAR)
    )
    boxes.__dict__.update(batched_nms=_batched_nms, box_area=_box_area)
    parents = [ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.ops")]
    return {module.__name__: module for module in (*parents, functional, boxes)}


def _box_area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])


def _batched_nms(boxes_xyxy: Tensor, scores: Tensor, categories: Tensor, *, iou_threshold: float) -> Tensor:
    """Return the indices that greedy NMS keeps, best first, the earlier of equal scores; all boxes have one category."""
    assert not categories.any()
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        a, b = boxes_xyxy[best], boxes_xyxy[rest]
        sides = (torch.minimum(a[2:], b[:, 2:]) - torch.maximum(a[:2], b[:, :2])).clamp_min(0)
        both = sides.prod(1)
        iou = both / (_box_area(a[None]) + _box_area(b) - both)
        order = rest[~(iou.double() > iou_threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def reference_sam(*, image_size: int, **encoder: Any) -> nn.Module:
    """Return segment_anything's Sam in evaluation mode, built as in its build_sam.py."""
    parts = (
        reference_image_encoder(image_size=image_size, **encoder),
        reference_prompt_encoder(image_size),
        reference_mask_decoder(),
    )
    sam: nn.Module = segment_anything().modeling.Sam(*parts)
    return sam.eval()


def reference_prompt_encoder(image_size: int = 1024) -> nn.Module:
    """Return segment_anything's prompt encoder in evaluation mode."""
    grid = image_size // 16
    encoder: nn.Module = segment_anything().modeling.PromptEncoder(
        embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=16
    )
    return encoder.eval()


def reference_mask_decoder() -> nn.Module:
    """Return segment_anything's mask decoder in evaluation mode."""
    modeling = segment_anything().modeling
    decoder: nn.Module = modeling.MaskDecoder(
        num_multimask_outputs=3,
        transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        transformer_dim=256,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    return decoder.eval()


def reference_image_encoder(
    *,
    image_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attn_indexes: tuple[int, ...],
    patch_size: int = 16,
    window_size: int = 14,
    out_chans: int = 256,
) -> nn.Module:
    """Return segment_anything's image encoder in evaluation mode; parameters have this project's names."""
    encoder: nn.Module = segment_anything().modeling.ImageEncoderViT(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=4,
        out_chans=out_chans,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window_size,
        global_attn_indexes=global_attn_indexes,
    )
    return encoder.eval()


def reference_mobile_sam(checkpoint: Path) -> nn.Module:
    """Return segment_anything's Sam in evaluation mode with MobileSAM's weights and this project's TinyViT as image encoder."""
    sam: nn.Module = segment_anything().modeling.Sam(
        load_checkpoint(checkpoint, "cpu").image_encoder, reference_prompt_encoder(), reference_mask_decoder()
    )
    sam.image_encoder.img_size = sam.image_encoder.image_size
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    for name, part in (("prompt_encoder", sam.prompt_encoder), ("mask_decoder", sam.mask_decoder)):
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        part.load_state_dict(own, strict=True)
    return sam.eval()
