"""The variants, a few numbers each."""

from __future__ import annotations

from collections.abc import Sequence

from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import nn

from sam_train.errors import ConfigError
from sam_train.model.image_encoder import ImageEncoder
from sam_train.model.mask_decoder import MaskDecoder
from sam_train.model.prompt_encoder import PromptEncoder
from sam_train.model.sam import Sam
from sam_train.model.transformer import TwoWayTransformer


def build_sam(
    *,
    image_size: int = 1024,
    patch_size: int = 16,
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_attn_indexes: Sequence[int],
    window_size: int = 14,
    prompt_dim: int = 256,
    decoder_mlp_dim: int = 2048,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    decoder_dropout: float = 0.0,
    use_rel_pos: bool = True,
    stem: str = "linear",
    drop_path_rate: float = 0.0,
    activation_checkpointing: bool = False,
) -> Sam:
    """A SAM with a ViT encoder.

    `activation_checkpointing` wraps the encoder's blocks in fairscale's `checkpoint_wrapper`: their inner
    activations are computed again in the backward pass instead of being kept.
    Raises ConfigError when the numbers cannot go together.
    """
    if image_size % patch_size or embed_dim % num_heads or prompt_dim % 16:
        raise ConfigError(
            f"image_size {image_size} must be a multiple of patch_size {patch_size}, embed_dim {embed_dim} of num_heads "
            f"{num_heads}, and prompt_dim {prompt_dim} of 16"
        )
    if prompt_dim % (2 * decoder_heads):
        raise ConfigError(f"prompt_dim {prompt_dim} must be a multiple of twice decoder_heads {decoder_heads}")
    if stem not in ("linear", "conv"):
        raise ConfigError(f"stem must be 'linear' or 'conv', got {stem!r}")
    if not set(global_attn_indexes) <= set(range(depth)):
        raise ConfigError(f"global_attn_indexes {list(global_attn_indexes)} must lie in 0 ... {depth - 1}, the {depth} blocks")
    encoder = ImageEncoder(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        global_attn_indexes=global_attn_indexes,
        window_size=window_size,
        out_chans=prompt_dim,
        use_rel_pos=use_rel_pos,
        drop_path_rate=drop_path_rate,
        stem=stem,
    )
    if activation_checkpointing:
        encoder.blocks = nn.ModuleList(checkpoint_wrapper(block) for block in encoder.blocks)
    transformer = TwoWayTransformer(
        depth=decoder_depth, dim=prompt_dim, num_heads=decoder_heads, mlp_dim=decoder_mlp_dim, dropout=decoder_dropout
    )
    return Sam(
        encoder,
        PromptEncoder(embed_dim=prompt_dim, image_size=image_size, grid_size=image_size // patch_size),
        MaskDecoder(dim=prompt_dim, transformer=transformer),
    )
