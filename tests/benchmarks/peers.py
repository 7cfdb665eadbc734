"""The implementations that benchmarks and parity tests measure ours against."""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import nn


@cache
def segment_anything() -> SimpleNamespace:
    """segment_anything's modules `modeling`, `onnx` and `amg`; its own __init__ imports torchvision, which nothing here needs.

    Nothing of it stays in sys.modules: with the stub there, no other place could find the package any more.
    Raises ImportError that says what to install.
    """
    spec = find_spec("segment_anything")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("needs segment-anything==1.0: pip install 'sam-train[dev]'")
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package
    names = ("segment_anything.modeling", "segment_anything.utils.onnx", "segment_anything.utils.amg")
    modules = {name.rpartition(".")[2]: import_module(name) for name in names}
    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        del sys.modules[name]
    return SimpleNamespace(**modules)


def reference_sam(*, image_size: int, **encoder: Any) -> nn.Module:
    """segment_anything's Sam in evaluation mode, put together as in its build_sam.py."""
    parts = (
        reference_image_encoder(image_size=image_size, **encoder),
        reference_prompt_encoder(image_size),
        reference_mask_decoder(),
    )
    sam: nn.Module = segment_anything().modeling.Sam(*parts)
    return sam.eval()


def reference_prompt_encoder(image_size: int = 1024) -> nn.Module:
    """segment_anything's prompt encoder in evaluation mode."""
    grid = image_size // 16
    encoder: nn.Module = segment_anything().modeling.PromptEncoder(
        embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=16
    )
    return encoder.eval()


def reference_mask_decoder() -> nn.Module:
    """segment_anything's mask decoder in evaluation mode."""
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
    """segment_anything's image encoder in evaluation mode, by our names; the rest as in its build_sam.py."""
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
