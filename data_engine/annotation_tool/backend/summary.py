"""The numbers of stages one and two: what masks cost, by annotator and checkpoint; how well annotators agree; how far
automatic masks were from what people made of them."""

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

_MADE = """SELECT m.*, t.image FROM masks m JOIN tasks t ON t.id = m.task
    WHERE NOT m.deleted AND m.origin != 'proposed' ORDER BY m.annotator, m.checkpoint"""
_TWO_PASSES = """SELECT t.image, t.id FROM tasks t WHERE t.state IN ('done', 'accepted') AND t.image IN (
    SELECT image FROM tasks WHERE state IN ('done', 'accepted') GROUP BY image HAVING count(*) > 1) ORDER BY t.image, t.pass"""


def summary(database: Database) -> dict[str, Any]:
    """`annotators` (a row for each annotator and checkpoint), `agreement` and `corrections`; see the functions below."""
    db = database.connection
    groups = groupby(db.execute(_MADE), key=lambda row: (row["annotator"], row["checkpoint"]))
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
    """Of two finished passes over one image, each mask with its best partner, best pairs first.

    mean_iou is over the pairs of at least 0.5 IoU, `paired` the share of all masks that have such a partner.
    """
    ious: list[float] = []
    images = num_masks = 0
    for _, tasks in groupby(db.execute(_TWO_PASSES), key=lambda row: row["image"]):
        first, second = (_rles(db, row["id"]) for row in list(tasks)[:2])
        images, num_masks = images + 1, num_masks + len(first) + len(second)
        ious += paired_ious(first, second)
    return {
        "images": images,
        "mean_iou": mean(ious) if ious else None,
        "paired": 2 * len(ious) / num_masks if num_masks else None,
    }


def paired_ious(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], least: float = 0.5) -> list[float]:
    """IoU of the pairs, greedily from the best down to `least`, no mask in two."""
    if not first or not second:
        return []
    table = coco_mask.iou(list(first), list(second), [0] * len(second))
    found = []
    while table.size and table.max() >= least:
        i, j = np.unravel_index(table.argmax(), table.shape)
        found.append(float(table[i, j]))
        table[i, :] = table[:, j] = -1
    return found


def corrections(db: sqlite3.Connection) -> dict[str, Any]:
    """IoU of a proposed mask with what the annotator made of it (paper, section 5: 94 % above 0.90, 97 % above 0.75).

    Of masks in finished images. Rejected ones are counted apart, nothing was made of them; `all_above` counts them as missed.
    Those that nobody looked at are in neither: they are exported nowhere.
    """
    rows = db.execute(
        """SELECT m.* FROM masks m JOIN tasks t ON t.id = m.task
        WHERE m.proposed IS NOT NULL AND t.state IN ('done', 'accepted')"""
    ).fetchall()
    not_looked_at = sum(row["origin"] == "proposed" and not row["deleted"] for row in rows)
    kept = [row for row in rows if not row["deleted"] and row["origin"] != "proposed"]
    ious = [_iou(row) for row in kept]
    num_judged = len(rows) - not_looked_at
    found: dict[str, Any] = {"masks": len(kept), "rejected": num_judged - len(kept), "not_looked_at": not_looked_at}
    for least in (0.90, 0.75):
        above = sum(iou > least for iou in ious)
        found[f"above_{least:.2f}"] = above / len(kept) if kept else None
        found[f"all_above_{least:.2f}"] = above / num_judged if num_judged else None
    return found


def _iou(row: sqlite3.Row) -> float:
    pair = [{"size": [row["height"], row["width"]], "counts": counts} for counts in (row["proposed"], row["counts"])]
    return float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0])


def _rles(db: sqlite3.Connection, task: int) -> list[dict[str, Any]]:
    rows = db.execute("SELECT height, width, counts FROM masks WHERE task = ? AND NOT deleted AND origin != 'proposed'", (task,))
    return [{"size": [row["height"], row["width"]], "counts": row["counts"]} for row in rows]
