"""Metrics of masks, boxes and edges."""

from sam_train.metrics.click_iou import ClickIoU

__all__ = ["ClickIoU"]
