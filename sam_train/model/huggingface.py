"""Conversion of weights and configs from and to `transformers.SamModel`, without importing transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sam_train.errors import CheckpointError

# Prefixes of tensor names in this project and in transformers; "#" is a number. The first match applies; a name that matches
# none is the same in both.
_PREFIXES = (
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.blocks.#.norm", "vision_encoder.layers.#.layer_norm"),
    ("image_encoder.blocks.#.", "vision_encoder.layers.#."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    ("image_encoder.", "vision_encoder."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.transformer.layers.#.norm", "mask_decoder.transformer.layers.#.layer_norm"),
    ("mask_decoder.transformer.norm_final_attn.", "mask_decoder.transformer.layer_norm_final_attn."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.0.", "mask_decoder.output_hypernetworks_mlps.#.proj_in."),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.1.", "mask_decoder.output_hypernetworks_mlps.#.layers.0."),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.2.", "mask_decoder.output_hypernetworks_mlps.#.proj_out."),
    ("mask_decoder.iou_prediction_head.layers.0.", "mask_decoder.iou_prediction_head.proj_in."),
    ("mask_decoder.iou_prediction_head.layers.1.", "mask_decoder.iou_prediction_head.layers.0."),
    ("mask_decoder.iou_prediction_head.layers.2.", "mask_decoder.iou_prediction_head.proj_out."),
)
# SamModel has one matrix under two names; its files contain either or both.
_SHARED = "shared_image_embedding.positional_embedding"
_SHARED_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"

_FROM_HUGGINGFACE = [
    (re.compile(re.escape(theirs).replace(r"\#", r"(\d+)")), ours.replace("#", r"\1")) for ours, theirs in _PREFIXES
]
_TO_HUGGINGFACE = [
    (re.compile(re.escape(ours).replace(r"\#", r"(\d+)")), theirs.replace("#", r"\1")) for ours, theirs in _PREFIXES
]


def convert_from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a SamModel's state dict under this project's names; other names stay unchanged."""
    deduplicated = {(_SHARED if name == _SHARED_ALIAS else name): tensor for name, tensor in state.items()}
    return {_rename(name, _FROM_HUGGINGFACE): tensor for name, tensor in deduplicated.items()}


def convert_to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a Sam with a ViT encoder under SamModel's names, the shared matrix once."""
    return {_rename(name, _TO_HUGGINGFACE): tensor for name, tensor in state.items()}


def _rename(name: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, prefix in table:
        if match := pattern.match(name):
            return match.expand(prefix) + name[match.end() :]
    return name


def read_decoder_heads(config: Mapping[str, Any], *, origin: str) -> int:
    """Return the mask decoder's number of attention heads in a parsed config.json. Raises CheckpointError if not a SamModel's."""
    if config.get("model_type") != "sam":
        raise CheckpointError(f"{origin} has model_type {config.get('model_type')!r}; expected 'sam', transformers' SamModel")
    return int((config.get("mask_decoder_config") or {}).get("num_attention_heads", 8))


def sam_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of SamModel for a config of `build_sam`."""
    size, dim, patch = config["image_size"], config["prompt_dim"], config["patch_size"]
    vision = {
        "model_type": "sam_vision_model",
        "hidden_size": config["embed_dim"],
        "output_channels": dim,
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "image_size": size,
        "patch_size": patch,
        "window_size": config["window_size"],
        "global_attn_indexes": config["global_attn_indexes"],
        "num_pos_feats": dim // 2,
        "mlp_dim": 4 * config["embed_dim"],
        "use_rel_pos": True,
        "layer_norm_eps": 1e-6,
    }
    decoder = {
        "model_type": "sam_mask_decoder",
        "hidden_size": dim,
        "mlp_dim": config["decoder_mlp_dim"],
        "num_hidden_layers": config["decoder_depth"],
        "num_attention_heads": config["decoder_heads"],
        "layer_norm_eps": 1e-5,  # as in segment-anything; SamModel's own default differs
    }
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "dtype": "float32",
        "vision_config": vision,
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder",
            "hidden_size": dim,
            "image_size": size,
            "patch_size": patch,
        },
        "mask_decoder_config": decoder,
    }


def sam_processor_config(image_size: int, mask_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """Return the preprocessor_config.json of SamProcessor.

    image_size: side of the model frame. mask_size: side of low-resolution masks. mean, std: of each channel, 0 to 255.
    """
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "size": {"longest_edge": image_size},
        "pad_size": {"height": image_size, "width": image_size},
        "mask_size": {"longest_edge": mask_size},
        "mask_pad_size": {"height": mask_size, "width": mask_size},
        "image_mean": [value / 255 for value in mean],
        "image_std": [value / 255 for value in std],
    }
