"""Export to Label Studio: tasks with brush masks as pre-annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sam_train.rle import decode_rle
from sam_train.shards.brush_rle import encode_brush
from sam_train.shards.class_names import UNNAMED_CLASS
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.tar_members import Sample


def export_label_studio(
    samples: Iterable[Sample],
    folder: ExportFolder,
    counts: Counter[str],
    *,
    image_url: str = "/data/local-files/?d=images/",
    from_name: str = "label",
    to_name: str = "image",
) -> None:
    """Write tasks.json, with a brush mask for each mask as a prediction (pre-annotation), and the folder images.

    Import tasks.json into a project whose labelling config has <BrushLabels name="label" toName="image"> and <Image
    name="image" value="$image">. Masks are exact to the pixel; those without a name have the label "object"; predicted_iou
    becomes the score of a region. Masks without pixels are skipped and counted as "mask_without_pixels". The JSON of all images
    is in memory.

    Args:
        image_url: Beginning of the images' URLs, as Label Studio serves the folder images.
        from_name: Name of BrushLabels in the labelling config.
        to_name: Name of Image in the labelling config.

    Raises:
        ShardError: An RLE does not have the size of its image.
    """
    tasks = []
    for sample in samples:
        record = sample.record
        name = folder.add_image(record, sample.jpeg)
        regions: list[dict[str, Any]] = []
        for index, mask in enumerate(record.masks):
            pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, shard=sample.shard, key=record.key)
            if not pixels.any():
                counts["mask_without_pixels"] += 1
                continue
            value = {"format": "rle", "rle": list(encode_brush(pixels)), "brushlabels": [mask.name or UNNAMED_CLASS]}
            region = {"id": f"{name}_{index}"[-60:], "type": "brushlabels", "from_name": from_name, "to_name": to_name}
            sides = {"original_width": record.width, "original_height": record.height, "image_rotation": 0}
            regions.append({**region, **sides, "score": mask.predicted_iou, "value": value})
        prediction = {"model_version": "sam-data", "result": regions}
        tasks.append({"data": {"image": f"{image_url}{name}.jpg"}, "predictions": [prediction]})
    folder.write("tasks.json", (json.dumps(tasks, ensure_ascii=False) + "\n").encode())
