"""The record of a mask holds SA-1B's keys and the mask's provenance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_engine.slices.mask_record import to_mask_record
from sam_train.inference import GeneratedMask, MaskOrigin
from sam_train.inference.grids import Crop
from sam_train.records import MaskRecord
from sam_train.rle import encode_rle
from sam_train.structures import PointLabel

PIXELS = np.zeros((30, 40), bool)
PIXELS[5:10, 8:20] = True
POINTS = ((9.0, 6.0, 1), (30.0, 20.0, 0))


def mask(**values: object) -> GeneratedMask:
    generated = GeneratedMask.from_rle(encode_rle(PIXELS), predicted_iou=0.9, stability_score=0.97, prompt_points=POINTS)
    return replace(generated, **values)  # type: ignore[arg-type]


def record(value: GeneratedMask) -> MaskRecord:
    return to_mask_record(value, 3, first_id=700, stage="s", annotator="ada", checkpoint="c", config="k")


def test_generated_mask_has_all_clicks_and_is_automatic() -> None:
    made = record(mask(parent=1, name="cat"))
    assert (made.id, made.bbox, made.area) == (703, [8, 5, 12, 5], 60)
    assert (made.predicted_iou, made.stability_score, made.segmentation) == (0.9, 0.97, encode_rle(PIXELS))
    assert (made.crop_box, made.point_coords) == ([0, 0, 40, 30], [[9, 6], [30, 20]])
    provenance = made.provenance
    assert provenance is not None
    assert (provenance.stage, provenance.annotator, provenance.checkpoint, provenance.config) == ("s", "automatic", "c", "k")
    assert (provenance.prompts, provenance.seconds) == ([[9, 6, 1], [30, 20, 0]], 0)
    assert (provenance.parent, provenance.name) == (701, "cat")


def test_annotated_mask_has_its_first_click_and_the_annotator() -> None:
    made = record(mask(origin=MaskOrigin.CLICKED, seconds=4.5))
    assert made.point_coords == [[9, 6]]
    assert made.provenance is not None
    assert (made.provenance.annotator, made.provenance.seconds, made.provenance.parent) == ("ada", 4.5, None)


def test_boxes_are_not_point_coords() -> None:
    corners = ((8.0, 5.0, int(PointLabel.BOX_TOP_LEFT)), (19.0, 9.0, int(PointLabel.BOX_BOTTOM_RIGHT)))
    made = record(mask(prompt_points=corners, crop=Crop(4, 2, 30, 20, 1)))
    assert (made.point_coords, made.crop_box) == ([], [4, 2, 30, 20])
    assert made.provenance is not None
    assert made.provenance.prompts == [[8, 5, 2], [19, 9, 3]]
