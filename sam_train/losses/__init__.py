"""What a prediction costs: focal, dice and IoU losses, lowest of the candidates backpropagated."""

from sam_train.losses.sam_loss import LossTerms, SamLoss
from sam_train.losses.text_alignment import text_alignment_loss

__all__ = ["LossTerms", "SamLoss", "text_alignment_loss"]
