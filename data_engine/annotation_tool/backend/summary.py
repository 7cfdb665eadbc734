"""Statistics of human annotation: cost by annotator and checkpoint, inter-annotator agreement, quality of proposed masks."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import mean, median
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data_engine.annotation_tool.backend.database import Database

_SELECT_ANNOTATED = """SELECT m.*, t.image FROM masks m JOIN tasks t ON t.id = m.task
    WHERE NOT m.deleted AND m.origin != 'proposed' ORDER BY m.annotator, m.checkpoint"""
_SELECT_DOUBLE_ANNOTATED = """SELECT t.image, t.id FROM tasks t WHERE t.state IN ('done', 'accepted') AND t.image IN (
    SELECT image FROM tasks WHERE state IN ('done', 'accepted') GROUP BY image HAVING count(*) > 1) ORDER BY t.image, t.pass"""


def summarize(database: Database) -> dict[str, Any]:
    """Return `annotators` (one row for each annotator and checkpoint), `agreement` and `corrections`.

    See `agreement` and `corrections` for their keys.
    """
    db = database.connection
    groups = groupby(db.execute(_SELECT_ANNOTATED), key=lambda row: (row["annotator"], row["checkpoint"]))
    return {
        "annotators": [_costs(*key, list(rows)) for key, rows in groups],
        "agreement": agreement(db),
        "corrections": corrections(db),
    }


def _costs(annotator: str, checkpoint: str, masks: Sequence[sqlite3.Row]) -> dict[str, Any]:
    seconds = [row["seconds"] for row in masks]
    images = len({row["image"] for row in masks})
    return {
        "annotator": annotator,
        "checkpoint": checkpoint,
        "images": images,
        "masks": len(masks),
        "masks_per_image": len(masks) / images,
        "seconds_per_mask": mean(seconds),
        "median_seconds_per_mask": median(seconds),
        "idle_seconds_per_mask": mean(max(0.0, row["wall_seconds"] - row["seconds"]) for row in masks),
        "masks_per_minute": 60 * len(masks) / sum(seconds) if sum(seconds) else None,
        "clicks_per_mask": mean(row["clicks"] for row in masks),
        "strokes_per_mask": mean(row["strokes"] for row in masks),
        "origins": dict(sorted(Counter(row["origin"] for row in masks).items())),
    }


def agreement(db: sqlite3.Connection) -> dict[str, Any]:
    """Compare the masks of the first two finished passes over each image, matched one to one by IoU.

    Returns `images`: number of images with two finished passes; `mean_iou`: mean IoU of the matched pairs (IoU of at least 0.5),
    None without pairs; `paired`: share of all masks that have a match, None without masks.
    """
    ious: list[float] = []
    images = num_masks = 0
    for _, tasks in groupby(db.execute(_SELECT_DOUBLE_ANNOTATED), key=lambda row: row["image"]):
        first, second = (_rles(db, row["id"]) for row in list(tasks)[:2])
        images, num_masks = images + 1, num_masks + len(first) + len(second)
        ious += paired_ious(first, second)
    return {
        "images": images,
        "mean_iou": mean(ious) if ious else None,
        "paired": 2 * len(ious) / num_masks if num_masks else None,
    }


def paired_ious(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], min_iou: float = 0.5) -> list[float]:
    """Return the IoUs of a greedy one-to-one matching, highest IoU first, down to `min_iou`."""
    if not first or not second:
        return []
    iou_matrix = coco_mask.iou(list(first), list(second), [0] * len(second))
    ious = []
    while iou_matrix.size and iou_matrix.max() >= min_iou:
        i, j = np.unravel_index(iou_matrix.argmax(), iou_matrix.shape)
        ious.append(float(iou_matrix[i, j]))
        iou_matrix[i, :] = iou_matrix[:, j] = -1
    return ious


def corrections(db: sqlite3.Connection) -> dict[str, Any]:
    """Compare proposed masks of finished images with the masks that annotators made of them (paper, section 5).

    Returns `masks`: number of accepted and edited masks; `rejected`: number of deleted ones; `not_reviewed`: number that the
    annotator neither accepted, edited nor deleted (they are not exported and count nowhere else); `above_0.90` and
    `above_0.75`: share of `masks` whose IoU with the proposed mask is greater (paper: 94 % and 97 %), None without masks;
    `all_above_0.90` and `all_above_0.75`: the same number as a share of accepted, edited and rejected masks.
    """
    rows = db.execute(
        """SELECT m.* FROM masks m JOIN tasks t ON t.id = m.task
        WHERE m.proposed IS NOT NULL AND t.state IN ('done', 'accepted')"""
    ).fetchall()
    not_reviewed = sum(row["origin"] == "proposed" and not row["deleted"] for row in rows)
    kept = [row for row in rows if not row["deleted"] and row["origin"] != "proposed"]
    ious = [_iou(row) for row in kept]
    num_reviewed = len(rows) - not_reviewed
    result: dict[str, Any] = {"masks": len(kept), "rejected": num_reviewed - len(kept), "not_reviewed": not_reviewed}
    for threshold in (0.90, 0.75):
        above = sum(iou > threshold for iou in ious)
        result[f"above_{threshold:.2f}"] = above / len(kept) if kept else None
        result[f"all_above_{threshold:.2f}"] = above / num_reviewed if num_reviewed else None
    return result


def _iou(row: sqlite3.Row) -> float:
    pair = [{"size": [row["height"], row["width"]], "counts": counts} for counts in (row["proposed"], row["counts"])]
    return float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0])


def _rles(db: sqlite3.Connection, task: int) -> list[dict[str, Any]]:
    rows = db.execute("SELECT height, width, counts FROM masks WHERE task = ? AND NOT deleted AND origin != 'proposed'", (task,))
    return [{"size": [row["height"], row["width"]], "counts": row["counts"]} for row in rows]
