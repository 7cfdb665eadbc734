"""What a model is worth, in numbers that add up over processes."""

from sam_train.metrics.click_iou import ClickIoU

__all__ = ["ClickIoU"]
