"""The paper's figure 4, a part a file: image encoder, prompt encoder, mask decoder."""

from sam_train.model.sam import Sam

__all__ = ["Sam"]
