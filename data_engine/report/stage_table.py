"""The columns of the stage table, the meaning of each, and the text of a cell without a number."""

from __future__ import annotations

from dataclasses import dataclass

from data_engine.report.stage_statistics import StageStatistics


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the stage table."""

    key: str
    """Name of the value in report.json."""
    title: str
    digits: int
    """Digits after the decimal point."""
    meaning: str
    """Explanation in a sentence."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the stage table."""

    text: str
    present: bool
    """False if the text says why there is no value."""


COLUMNS = (
    Column("images", "Images", 0, "Number of images in the finished shards of the stage."),
    Column("masks_per_image", "Masks / image", 1, "Number of written masks divided by the number of images."),
    Column("clicks_per_mask", "Clicks / mask", 2, "Clicks of the annotators divided by the number of written masks."),
    Column(
        "seconds_per_mask",
        "Seconds / mask",
        2,
        "Annotation time divided by the number of written masks: measured for a person, from the costs in the config for the "
        "simulated annotator.",
    ),
    Column(
        "mean_iou",
        "Mean IoU",
        3,
        "Quality of the written masks: the best IoU of each with a ground-truth mask of the same image, averaged over the masks.",
    ),
    Column(
        "miou_at_1",
        "mIoU@1",
        3,
        "Mean IoU on held-out images after one click per object, by the model that is in use after the stage.",
    ),
    Column(
        "miou_at_3",
        "mIoU@3",
        3,
        "The same after three clicks. Each further click is in the error region, farthest from its boundary.",
    ),
    Column("miou_at_5", "mIoU@5", 3, "The same after five clicks."),
)
MODEL_TITLE = "Promoted?"
MODEL_MEANING = "Yes if the model that was trained in the stage was better on the held-out images than the one in use before."


def cell(row: StageStatistics, column: Column) -> Cell:
    """Return the formatted number, or the reason why there is none."""
    value = getattr(row, column.key)
    if value is not None:
        return Cell(f"{value:,.{column.digits}f}", True)
    return Cell(_missing_text(row, column.key), False)


def model_cell(row: StageStatistics) -> Cell:
    """Return whether the model of the stage was promoted."""
    if row.promoted is None:
        return Cell("skipped" if row.left_out else "not yet", False)
    return Cell("yes" if row.promoted else "no", True)


def _missing_text(row: StageStatistics, key: str) -> str:
    if row.left_out or row.stage == "start":
        return "–"
    if row.masks is None or key.startswith("miou_at_"):
        return "not yet"
    if row.masks == 0:
        return "no masks"
    return "no ground truth" if key == "mean_iou" else "not counted"
