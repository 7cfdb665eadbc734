"""What a prediction costs: focal, dice and IoU losses, lowest of the candidates backpropagated."""

from sam_train.losses.alignment import alignment_loss
from sam_train.losses.sam import LossTerms, SamLoss

__all__ = ["LossTerms", "SamLoss", "alignment_loss"]
