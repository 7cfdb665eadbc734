"""The model of the paper's figure 4, one file per component: image encoder, prompt encoder, mask decoder."""

from sam_train.model.sam import Sam

__all__ = ["Sam"]
