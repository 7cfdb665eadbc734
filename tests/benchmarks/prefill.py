"""Masks per annotator-minute in the semi-automatic stage, with prefilled masks of a proposer and without.

    python tests/benchmarks/prefill.py SHARDS CHECKPOINT PROPOSER [NUM_IMAGES]

prints one line of JSON. The same simulated annotator annotates the same images twice, over HTTP. Its time is not measured but
counted at the prices in the output: seconds to find an object, per click, to draw a mask by hand, and to review a mask.
`mean_iou` is that of the masks with the ground truth, `found` the fraction of ground-truth masks that have one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from server_fixtures import run_server

from data_engine.annotation_tool.backend.client import AnnotationClient
from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.simulated_client import SimulatedClient
from data_engine.annotation_tool.backend.summary import paired_ious
from data_engine.annotators import SimulatedAnnotator
from data_engine.sources import Source, open_source

PRICES = {"seconds_to_find": 2.0, "seconds_per_click": 1.5, "seconds_to_draw": 34.0, "seconds_to_review": 1.0}
ACCEPT_IOU, MAX_CLICKS, MAX_MASKS = 0.8, 6, 500


def measure(shards: str, num_images: int, *overrides: str) -> dict[str, Any]:
    """Annotate the first images once and return the costs."""
    ground_truth = open_source(shards)
    annotator = SimulatedAnnotator(accept_iou=ACCEPT_IOU, max_clicks=MAX_CLICKS, max_masks=MAX_MASKS, **PRICES)
    with TemporaryDirectory() as name:
        out = Path(name)
        common = (f"corpus={shards}", "annotators=[a]", "threads=1", "num_prefetch=1")
        with (
            run_server(out, *common, *overrides) as server,
            AnnotationClient(server.url, server.tokens["a"], timeout_s=600) as client,
        ):
            simulated = SimulatedClient(client, annotator, ground_truth)
            counts = simulated.annotate_images(num_images)
        found = compare_with_ground_truth(Database(out / "store.sqlite"), ground_truth, simulated.image_keys)
    minutes = counts["seconds"] / 60
    names = ("images", "clicks", "masks_drawn", "masks_clicked", "masks_reviewed")
    return {
        "masks_per_minute": round(found["masks"] / minutes, 2),
        "minutes": round(minutes, 1),
        **{name: int(counts.get(name, 0)) for name in names},
        **found,
    }


def compare_with_ground_truth(database: Database, ground_truth: Source, keys: list[str]) -> dict[str, Any]:
    """Return the number of masks in the store, and how well they match the ground truth."""
    query = """SELECT m.*, t.image FROM masks m JOIN tasks t ON t.id = m.task
        WHERE NOT m.deleted AND m.origin != 'proposed'"""
    rows = database.connection.execute(query).fetchall()
    ious, there = [], 0
    for reference in ground_truth.references:
        if reference.key in keys:
            record = ground_truth.load(reference).record
            assert record is not None
            made = [{"size": [r["height"], r["width"]], "counts": r["counts"]} for r in rows if r["image"] == reference.key]
            ious += paired_ious(made, [mask.segmentation for mask in record.masks])
            there += len(record.masks)
    origins = {name: sum(row["origin"] == name for row in rows) for name in ("accepted", "edited", "clicked", "drawn")}
    return {"masks": len(rows), **origins, "mean_iou": round(sum(ious) / len(ious), 3), "found": round(len(ious) / there, 3)}


def main(shards: str, checkpoint: str, proposer: str, num_images: str = "8") -> None:
    common = (shards, int(num_images), f"checkpoint={checkpoint}")
    without = measure(*common)
    with_it = measure(*common, "generator@proposals=proposer", f"proposals.file={proposer}")
    gain = round(with_it["masks_per_minute"] / without["masks_per_minute"], 2)
    prices = {**PRICES, "accept_iou": ACCEPT_IOU, "max_clicks": MAX_CLICKS}
    print(json.dumps({"gain": gain, "without": without, "with": with_it, "prices": prices}))


if __name__ == "__main__":
    main(*sys.argv[1:])
