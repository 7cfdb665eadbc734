"""The implementations that benchmarks and parity tests measure ours against."""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn


@cache
def segment_anything_modeling() -> Any:
    """`segment_anything.modeling`; the package's own __init__ imports torchvision, which nothing here needs.

    Nothing of it stays in sys.modules: with the stub there, no other place could find the package any more.
    Raises ImportError that says what to install.
    """
    spec = find_spec("segment_anything")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("needs segment-anything==1.0: pip install 'sam-train[dev]'")
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package
    from segment_anything import modeling  # type: ignore[import-untyped]

    for name in [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]:
        del sys.modules[name]
    return modeling


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
    encoder: nn.Module = segment_anything_modeling().ImageEncoderViT(
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
