"""Whether a model and a text encoder belong together."""

from __future__ import annotations

from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.text.encoder import TextEncoder


def check_text_encoder(model: Sam, encoder: TextEncoder) -> None:
    """Raise ConfigError unless the model was trained with the embeddings of this very encoder."""
    prompt_encoder = model.prompt_encoder
    if prompt_encoder.text_dim is None:
        raise ConfigError("this model takes no words: prompt it by points or boxes, or train one that does (sam-train text=...)")
    if prompt_encoder.text_dim != encoder.dim:
        wanted = f"embeddings of {prompt_encoder.text_dim} numbers"
        raise ConfigError(
            f"this model takes {wanted}, and the text encoder makes {encoder.dim}: name the one it was trained with"
        )
    if prompt_encoder.text_encoder not in (None, encoder.sha256):
        ours, theirs = prompt_encoder.text_encoder[:12], encoder.sha256[:12]
        raise ConfigError(
            f"this model was trained with text encoder {ours}, and this is {theirs}: their numbers mean other things"
        )
