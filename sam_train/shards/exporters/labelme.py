"""Export to the JSON of labelme and X-AnyLabeling, one file per image."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from PIL import Image

from sam_train.rle import decode_rle
from sam_train.shards.class_names import UNNAMED_CLASS
from sam_train.shards.exporters.crops import mask_crop
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings
from sam_train.shards.tar_members import Sample


def export_labelme(
    samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str], *, mask_format: Literal["mask", "polygons"] = "mask"
) -> None:
    """Write the folder images with a JSON beside each image, as labelme opens it.

    A mask is a shape "mask" (labelme 5.2 and newer), or a polygon along the edges of its pixels, with bridges between its parts
    and holes, counted as "mask_with_bridges". `sam-data import labelme` restores the same pixels from both. Masks without a name
    have the label "object"; ids and scores are not written. Masks without pixels are skipped and counted as
    "mask_without_pixels".

    Args:
        mask_format: Form of the shapes.

    Raises:
        ShardError: An RLE does not have the size of its image.
    """
    for sample in samples:
        record = sample.record
        name = folder.add_image(record, sample.jpeg)
        shapes = []
        for mask in record.masks:
            pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
            if not pixels.any():
                counts["mask_without_pixels"] += 1
                continue
            shape = _mask_shape(pixels) if mask_format == "mask" else _polygon_shape(pixels, counts)
            shapes.append({"label": mask.name or UNNAMED_CLASS, "group_id": None, "description": "", "flags": {}} | shape)
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{name}.jpg",
            "imageData": None,
            "imageHeight": record.height,
            "imageWidth": record.width,
        }
        folder.write(f"images/{name}.json", (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def _mask_shape(pixels: np.ndarray) -> dict[str, Any]:
    part, left, top = mask_crop(pixels)
    stream = io.BytesIO()
    Image.fromarray(part.astype(np.uint8) * 255).save(stream, "PNG")
    corners = [[left, top], [left + part.shape[1] - 1, top + part.shape[0] - 1]]
    return {"shape_type": "mask", "points": corners, "mask": base64.b64encode(stream.getvalue()).decode()}


def _polygon_shape(pixels: np.ndarray, counts: Counter[str]) -> dict[str, Any]:
    rings = mask_to_rings(pixels)
    counts.update(["mask_with_bridges"] if len(rings) > 1 else [])
    return {"shape_type": "polygon", "points": join_rings(rings).tolist(), "mask": None}
