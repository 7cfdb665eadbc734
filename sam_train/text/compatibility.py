"""Check that a model was trained with a given text encoder."""

from __future__ import annotations

from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.text.encoder import TextEncoder


def check_text_encoder(model: Sam, encoder: TextEncoder) -> None:
    """Raise ConfigError unless the model takes text prompts and was trained with embeddings of this very encoder."""
    prompt_encoder = model.prompt_encoder
    if prompt_encoder.text_dim is None:
        raise ConfigError(
            "this model takes no text prompts: prompt it by points or boxes, or train one that does (sam-train text=...)"
        )
    if prompt_encoder.text_dim != encoder.dim:
        raise ConfigError(
            f"this model takes text embeddings of {prompt_encoder.text_dim} dimensions, and the text encoder returns "
            f"{encoder.dim}: give the text encoder that it was trained with"
        )
    if prompt_encoder.text_encoder not in (None, encoder.sha256):
        expected, actual = prompt_encoder.text_encoder[:12], encoder.sha256[:12]
        raise ConfigError(
            f"this model was trained with text encoder {expected}, and this is text encoder {actual}, whose embeddings are not "
            "compatible: give the text encoder that the model was trained with"
        )
