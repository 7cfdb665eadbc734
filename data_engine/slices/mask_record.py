"""Conversion of a mask in memory to its record in a shard."""

from __future__ import annotations

from sam_train.inference import GeneratedMask, MaskOrigin
from sam_train.records import MaskRecord, Provenance
from sam_train.rle import rle_area, rle_to_box_xywh
from sam_train.structures import PointLabel


def to_mask_record(
    mask: GeneratedMask, index: int, *, first_id: int, stage: str, annotator: str, checkpoint: str, config: str
) -> MaskRecord:
    """Return the record of the mask at `index` of its image.

    first_id: id of the image's first mask. stage, checkpoint, config: those of the provenance. annotator: name of the stage's
    annotator; a mask that the model generated alone has "automatic" instead.

    `point_coords` are all clicks of a generated mask's prompt, as in SA-1B, and the first click of an annotator's mask; the
    provenance holds all points.
    """
    generated = mask.origin is MaskOrigin.GENERATED
    clicks = [[x, y] for x, y, label in mask.prompt_points if label in (PointLabel.FOREGROUND, PointLabel.BACKGROUND)]
    return MaskRecord(
        id=first_id + index,
        segmentation=mask.rle,
        bbox=rle_to_box_xywh(mask.rle),
        area=rle_area(mask.rle),
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        crop_box=[float(side) for side in (mask.crop.x, mask.crop.y, mask.crop.width, mask.crop.height)],
        point_coords=clicks if generated else clicks[:1],
        provenance=Provenance(
            stage=stage,
            checkpoint=checkpoint,
            annotator="automatic" if generated else annotator,
            config=config,
            prompts=[[x, y, float(label)] for x, y, label in mask.prompt_points],
            seconds=mask.seconds,
            parent=None if mask.parent is None else first_id + mask.parent,
            name=mask.name,
        ),
    )
