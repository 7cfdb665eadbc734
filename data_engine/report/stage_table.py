"""The stage table: which columns, what each means in a sentence, and what a cell without a number says."""

from __future__ import annotations

from dataclasses import dataclass

from data_engine.report.stage_statistics import StageStatistics


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `key` is its name in report.json."""

    key: str
    title: str
    digits: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in the table, and whether it is a number or says why there is none."""

    text: str
    present: bool


COLUMNS = (
    Column("images", "Images", 0, "Images that the stage wrote into finished shards."),
    Column("masks_per_image", "Masks / image", 1, "Masks written, divided by those images."),
    Column("clicks_per_mask", "Clicks / mask", 2, "Clicks of the annotator in the whole stage, divided by the masks written."),
    Column(
        "seconds_per_mask",
        "Seconds / mask",
        2,
        "Time the annotator took, measured for a person or by the stated cost model of the simulated one, divided likewise.",
    ),
    Column("mean_iou", "Mean IoU", 3, "How good the written masks are: best IoU with a true mask of the same image, averaged."),
    Column(
        "miou_at_1", "mIoU@1", 3, "The model in use after the stage, on held-out images: mean IoU after one click on each object."
    ),
    Column("miou_at_3", "mIoU@3", 3, "The same after three clicks, each where the answer is most wrong."),
    Column("miou_at_5", "mIoU@5", 3, "The same after five clicks."),
)
MODEL_TITLE = "Better?"
MODEL_MEANING = "Whether the model trained after the stage beat the one before it on the held-out images, and so came into use."


def cell(line: StageStatistics, column: Column) -> Cell:
    """The number, or why there is none."""
    value = getattr(line, column.key)
    if value is not None:
        return Cell(f"{value:,.{column.digits}f}", True)
    return Cell(_why_missing(line, column.key), False)


def model_cell(line: StageStatistics) -> Cell:
    """Whether the new model was promoted."""
    if line.promoted is None:
        return Cell("left out" if line.left_out else "not yet", False)
    return Cell("yes" if line.promoted else "no", True)


def _why_missing(line: StageStatistics, key: str) -> str:
    if line.left_out or line.stage == "start":
        return "–"
    if line.masks is None or key.startswith("miou_at_"):
        return "not yet"
    if line.masks == 0:
        return "no masks"
    return "no truth" if key == "mean_iou" else "not counted"
