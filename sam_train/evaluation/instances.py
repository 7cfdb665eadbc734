"""Instance masks from a detector's boxes (paper, sections 7.4 and D.4).

Each box is a prompt; the highest-scored of its three masks is fed back with the box for a second pass. The detector's scores
and categories are kept. The measure is AP on an instances JSON of COCO or LVIS.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
)
from sam_train.files import atomic_write_bytes
from sam_train.inference import Predictor, make_prompts
from sam_train.metrics.coco_scores import check_engine, coco_scores
from sam_train.rle import encode_rle
from sam_train.shards import decode_jpeg
from sam_train.shards.importers.json_values import integer_field, read_json_object

PAPER = {
    "coco": {
        "paper: SAM ViT-H, COCO": {"ap": 0.465, "ap_small": 0.308, "ap_medium": 0.510, "ap_large": 0.617},
        "ViTDet-H": {"ap": 0.510},
    },
    "lvis": {
        "paper: SAM ViT-H, LVIS v1": {"ap": 0.447, "ap_small": 0.325, "ap_medium": 0.576, "ap_large": 0.655},
        "ViTDet-H": {"ap": 0.466},
    },
}


@dataclass(frozen=True, slots=True)
class DetectedBox:
    """A detection. The box is XYWH in pixels of the image frame; x and y are those of the top left corner."""

    xywh: tuple[float, float, float, float]
    category_id: int
    score: float


class InstanceProtocol(EvaluationProtocol):
    """Average precision of masks predicted from a detector's boxes.

    annotations: the instances JSON from which the shards were imported (`sam-data import coco` and lvis keep its image ids).
    boxes: detections in COCO's results format: [{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...].
    max_boxes: number of highest-scored boxes of an image: 100 by COCO's rules, 300 by LVIS's.
    refine: run the second pass. boxes_per_batch: prompts decoded at once.
    rules: "coco" or "lvis". engine: "hotcoco" (extra `evaluation`) or "pycocotools". iou: "mask", or "boundary" (pycocotools).
    results: file for the masks in COCO's results format, or null.

    Raises ConfigError if engine, rules and iou do not fit together.
    """

    def __init__(
        self,
        *,
        annotations: str | None = None,
        boxes: str | None = None,
        max_boxes: int = 100,
        refine: bool = True,
        boxes_per_batch: int = 64,
        rules: str = "coco",
        engine: str = "hotcoco",
        iou: str = "mask",
        results: str | None = None,
    ) -> None:
        check_engine(engine, rules=rules, iou=iou)
        self.annotations, self.boxes, self.max_boxes = annotations, boxes, max_boxes
        self.refine, self.boxes_per_batch = refine, boxes_per_batch
        self.rules, self.engine, self.iou, self.results = rules, engine, iou, results
        self._boxes: dict[int, list[DetectedBox]] = {}

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        if not self.annotations or not self.boxes:
            raise ConfigError("give protocol.annotations=INSTANCES.json and protocol.boxes=DETECTIONS.json, besides shards=")
        image_entries = list_shard_images(shards)
        images = read_json_object(Path(self.annotations), ("images", "annotations", "categories"))["images"]
        annotated_ids = {integer_field(image, "id", place=f"{self.annotations}, images") for image in images}
        unknown = [image_entry.name for image_entry in image_entries if image_entry.source.image_id not in annotated_ids]
        if unknown:
            raise ConfigError(
                f"{len(unknown)} images of the shards are not in {self.annotations}, such as {unknown[0]}: give the JSON from"
                " which they were imported"
            )
        self._boxes = {image: best_boxes(boxes, self.max_boxes) for image, boxes in read_boxes(Path(self.boxes)).items()}
        if not any(image_entry.source.image_id in self._boxes for image_entry in image_entries):
            raise ConfigError(f"{self.boxes} has no box for any image of the shards: give the detections of these images")
        return image_entries

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        sample = load_sample(image_entry)
        boxes = self._boxes.get(sample.record.image_id, [])
        results = []
        if boxes:
            predictor.set_image(decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key))
            masks = self.masks(predictor, torch.tensor([box.xywh for box in boxes]))
            results = [
                {"category_id": box.category_id, "score": box.score, "segmentation": encode_rle(mask)}
                for box, mask in zip(boxes, (mask.numpy() for mask in masks), strict=True)
            ]
        return {"image_id": sample.record.image_id, "results": results}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        assert self.annotations is not None
        results = [{"image_id": m["image_id"], **result} for m in measurements for result in m["results"]]
        if self.results:
            atomic_write_bytes(Path(self.results), json.dumps(results, separators=(",", ":")).encode())
        images = [m["image_id"] for m in measurements]
        scores = coco_scores(Path(self.annotations), results, images, engine=self.engine, rules=self.rules, iou=self.iou)
        paper = PAPER[self.rules] if self.iou == "mask" else {}
        return Summary(measures={**scores, "num_results": len(results), "num_images": len(images)}, paper=paper)

    def masks(self, predictor: Predictor, boxes_xywh: Float[Tensor, "N 4"]) -> list[Bool[Tensor, "H W"]]:
        """Return the mask of each box on the predictor's image, H x W on the CPU.

        boxes_xywh: N x 4 in the image frame. The corners of a prompt are the first and the last pixel inside the box, as
        `Prompts.from_boxes` expects them.
        """
        masks: list[Tensor] = []
        corners = boxes_xywh.clone()
        corners[:, 2:] = corners[:, :2] + (boxes_xywh[:, 2:] - 1).clamp(min=0)
        for batch in corners.to(predictor.device).split(self.boxes_per_batch):
            prompts = make_prompts(boxes_xyxy=batch, device=predictor.device)
            logits = predictor.predict_prompts(prompts, multimask_output=True).best().mask_logits
            if self.refine:
                logits = predictor.predict_prompts(prompts.with_mask(logits), multimask_output=False).mask_logits
            masks += predictor.masks_to_image(logits)[:, 0].cpu()
        return masks


def best_boxes(boxes: Sequence[DetectedBox], count: int) -> list[DetectedBox]:
    """Return the `count` boxes of highest score, best first; of equal scores the earlier box comes first."""
    return sorted(boxes, key=lambda box: -box.score)[:count]


def read_boxes(path: Path) -> dict[int, list[DetectedBox]]:
    """Read detections: image id -> boxes in the order of the file.

    Raises ShardError, with file and entry, if the file is not in COCO's results format.
    """
    if not path.is_file():
        raise ShardError(f"no such file: {path}")
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise ShardError(f"{path}: expected COCO's results format, a list of objects with image_id, category_id, bbox and score")
    boxes: dict[int, list[DetectedBox]] = defaultdict(list)
    for index, entry in enumerate(entries):
        place = f"{path}, entry {index}"
        if not isinstance(entry, dict):
            raise ShardError(f"{place}: expected an object, got {str(entry)[:80]}")
        image = integer_field(entry, "image_id", place=place)
        boxes[image].append(
            DetectedBox(_xywh(entry, place), integer_field(entry, "category_id", place=place), _score(entry, place))
        )
    return dict(boxes)


def _xywh(entry: Mapping[str, Any], place: str) -> tuple[float, float, float, float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e6 for v in box):
        raise ShardError(f"{place}: expected four numbers x, y, width, height as 'bbox', got {str(box)[:80]}")
    if box[2] < 0 or box[3] < 0:
        raise ShardError(f"{place}: expected width and height of at least 0 in 'bbox', got {box}")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _score(entry: Mapping[str, Any], place: str) -> float:
    score = entry.get("score")
    if not isinstance(score, (int, float)) or isinstance(score, bool) or not math.isfinite(score):
        raise ShardError(f"{place}: expected a number as 'score', got {str(score)[:80]}")
    return float(score)
