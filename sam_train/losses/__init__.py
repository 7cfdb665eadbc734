"""Losses: focal, dice and IoU loss of mask predictions, box loss of the proposer, and text alignment."""

from sam_train.losses.sam_loss import LossTerms, SamLoss
from sam_train.losses.text_alignment import text_alignment_loss

__all__ = ["LossTerms", "SamLoss", "text_alignment_loss"]
