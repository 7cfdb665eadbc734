"""Builders of the model variants from a few sizes."""

from __future__ import annotations

from collections.abc import Sequence

from sam_train.errors import ConfigError
from sam_train.model.image_encoder import ImageEncoder
from sam_train.model.layers import apply_activation_checkpointing
from sam_train.model.mask_decoder import MaskDecoder
from sam_train.model.prompt_encoder import PromptEncoder
from sam_train.model.sam import Sam
from sam_train.model.tiny_vit import ENCODER_STRIDE, MERGE_STRIDES, TinyViT
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
    iou_sigmoid: bool = False,
    iou_from_masks: bool = False,
    use_rel_pos: bool = True,
    stem: str = "linear",
    high_res_features: bool = False,
    drop_path_rate: float = 0.0,
    activation_checkpointing: str = "none",
    pixel_statistics: str = "released",
    text_dim: int | None = None,
    text_encoder: str | None = None,
) -> Sam:
    """Build a SAM with a ViT encoder.

    high_res_features: pass the features of the convolutional stem to the decoder, see `ImageEncoder`.
    iou_sigmoid, iou_from_masks: apply a sigmoid to IoU scores as SAM 2 does; read them also off the masks, see `MaskDecoder`.
    pixel_statistics: pixel normalization, "released" or "image", see `Sam`.
    activation_checkpointing: library that recomputes the encoder blocks' activations in the backward pass instead of storing
        them: "torch", "fairscale", or "none" to store them.
    text_dim, text_encoder: dimensions and hash of the text encoder of text prompts, see `PromptEncoder`; None disables text.
    Raises ConfigError if the values are inconsistent.
    """
    if image_size % patch_size or embed_dim % num_heads or prompt_dim % 16:
        raise ConfigError(
            f"image_size {image_size} must be a multiple of patch_size {patch_size}, embed_dim {embed_dim} of num_heads "
            f"{num_heads}, and prompt_dim {prompt_dim} of 16"
        )
    if stem not in ("linear", "conv"):
        raise ConfigError(f"stem must be 'linear' or 'conv', got {stem!r}")
    if pixel_statistics not in ("released", "image"):
        raise ConfigError(f"pixel_statistics must be 'released' or 'image', got {pixel_statistics!r}")
    if high_res_features and (stem != "conv" or patch_size < 8):
        raise ConfigError(f"high_res_features needs stem 'conv' and patch_size >= 8, got stem {stem!r} and {patch_size}")
    if not set(global_attn_indexes) <= set(range(depth)):
        raise ConfigError(f"global_attn_indexes {list(global_attn_indexes)} must be in 0 to {depth - 1}, the {depth} blocks")
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
        high_res_features=high_res_features,
    )
    return _assemble(
        encoder,
        grid_size=image_size // patch_size,
        prompt_dim=prompt_dim,
        mlp_dim=decoder_mlp_dim,
        depth=decoder_depth,
        heads=decoder_heads,
        dropout=decoder_dropout,
        iou_sigmoid=iou_sigmoid,
        iou_from_masks=iou_from_masks,
        activation_checkpointing=activation_checkpointing,
        pixel_statistics=pixel_statistics,
        text_dim=text_dim,
        text_encoder=text_encoder,
    )


def build_mobile_sam(
    *,
    image_size: int = 1024,
    embed_dims: Sequence[int] = (64, 128, 160, 320),
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (2, 4, 5, 10),
    window_sizes: Sequence[int] = (7, 7, 14, 7),
    prompt_dim: int = 256,
    decoder_mlp_dim: int = 2048,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    decoder_dropout: float = 0.0,
    iou_sigmoid: bool = False,
    iou_from_masks: bool = False,
    drop_path_rate: float = 0.0,
    freeze_batch_norm: bool = False,
    activation_checkpointing: str = "none",
    text_dim: int | None = None,
    text_encoder: str | None = None,
) -> Sam:
    """Build a SAM with MobileSAM's TinyViT encoder (see `TinyViT` for its sizes); other parameters as in `build_sam`.

    Raises ConfigError if the values are inconsistent.
    """
    stages = {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads, "window_sizes": window_sizes}
    if any(len(numbers) != len(MERGE_STRIDES) + 1 or min(numbers) < 1 for numbers in stages.values()):
        raise ConfigError(f"an encoder of four stages needs four positive values each for {', '.join(stages)}: got {stages}")
    if image_size % ENCODER_STRIDE or prompt_dim % 16:
        raise ConfigError(f"image_size {image_size} must be a multiple of {ENCODER_STRIDE}, and prompt_dim {prompt_dim} of 16")
    if any(dim % heads for dim, heads in zip(embed_dims[1:], num_heads[1:], strict=True)):
        raise ConfigError(f"embed_dims {list(embed_dims)} must be multiples of num_heads {list(num_heads)} from the second on")
    if activation_checkpointing == "torch" and not freeze_batch_norm:
        remedy = "use fairscale, or freeze_batch_norm=true"
        raise ConfigError(f"with activation_checkpointing=torch, batch norms would count every image twice: {remedy}")
    encoder = TinyViT(
        image_size=image_size,
        embed_dims=embed_dims,
        depths=depths,
        num_heads=num_heads,
        window_sizes=window_sizes,
        out_chans=prompt_dim,
        drop_path_rate=drop_path_rate,
        freeze_batch_norm=freeze_batch_norm,
    )
    return _assemble(
        encoder,
        grid_size=image_size // ENCODER_STRIDE,
        prompt_dim=prompt_dim,
        mlp_dim=decoder_mlp_dim,
        depth=decoder_depth,
        heads=decoder_heads,
        dropout=decoder_dropout,
        iou_sigmoid=iou_sigmoid,
        iou_from_masks=iou_from_masks,
        activation_checkpointing=activation_checkpointing,
        text_dim=text_dim,
        text_encoder=text_encoder,
    )


def _assemble(
    encoder: ImageEncoder | TinyViT,
    *,
    grid_size: int,
    prompt_dim: int,
    mlp_dim: int,
    depth: int,
    heads: int,
    dropout: float,
    iou_sigmoid: bool,
    iou_from_masks: bool,
    activation_checkpointing: str,
    text_dim: int | None,
    text_encoder: str | None,
    pixel_statistics: str = "released",
) -> Sam:
    """Combine an image encoder with a prompt encoder and a mask decoder of matching width."""
    if prompt_dim % (2 * heads):
        raise ConfigError(f"prompt_dim {prompt_dim} must be a multiple of twice decoder_heads {heads}")
    apply_activation_checkpointing(encoder.blocks, activation_checkpointing)
    transformer = TwoWayTransformer(depth=depth, dim=prompt_dim, num_heads=heads, mlp_dim=mlp_dim, dropout=dropout)
    return Sam(
        encoder,
        PromptEncoder(
            embed_dim=prompt_dim,
            image_size=encoder.image_size,
            grid_size=grid_size,
            text_dim=text_dim,
            text_encoder=text_encoder,
        ),
        MaskDecoder(dim=prompt_dim, transformer=transformer, iou_sigmoid=iou_sigmoid, iou_from_masks=iou_from_masks),
        pixel_statistics=pixel_statistics,
    )
