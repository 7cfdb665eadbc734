"""The three annotation stages of the paper (section 4): each makes masks from an image and a model."""

from data_engine.stages.assisted_manual import AssistedManual
from data_engine.stages.base import Stage
from data_engine.stages.fully_automatic import FullyAutomatic
from data_engine.stages.semi_automatic import SemiAutomatic

__all__ = ["AssistedManual", "FullyAutomatic", "SemiAutomatic", "Stage"]
