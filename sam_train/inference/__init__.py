"""The public door for using a model: `Predictor` for prompts, `AutomaticMaskGenerator` for everything."""

from sam_train.inference.automatic import AutomaticMaskGenerator, GeneratedMask
from sam_train.inference.predictor import Predictor

__all__ = ["AutomaticMaskGenerator", "GeneratedMask", "Predictor"]
