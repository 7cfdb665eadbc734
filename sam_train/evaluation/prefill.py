"""Precision and recall of prefilled masks, which the semi-automatic stage shows before the annotator adds others.

The masks of a generator (a point grid with strict thresholds, or a proposer's boxes) are matched with the masks of the shards one
to one, greedily in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
)
from sam_train.inference import MaskGenerator, Predictor
from sam_train.metrics.precision_recall import count_matches
from sam_train.metrics.recall import proposal_ious
from sam_train.shards import decode_jpeg

IOUS = (0.5, 0.75, 0.9)


class PrefillProtocol(EvaluationProtocol):
    """Precision and recall of the masks of a generator at several IoUs.

    generator: configs/protocol/prefill.yaml has a strict point grid; `generator@protocol.generator=proposer` selects a proposer.
    """

    def __init__(self, *, generator: MaskGenerator) -> None:
        self.generator = generator

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        return list_shard_images(shards)

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        sample = load_sample(image_entry)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
        masks, _ = self.generator.generate(predictor.model, image)
        ground_truth = [mask.segmentation for mask in sample.record.masks]
        ious = torch.from_numpy(proposal_ious([mask.rle for mask in masks], ground_truth))
        return {"found": len(masks), "there": len(ground_truth), "matched": [count_matches(ious, min_iou) for min_iou in IOUS]}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        num_generated, num_masks = (sum(m[name] for m in measurements) for name in ("found", "there"))
        if not num_masks:
            raise ConfigError(f"no mask to evaluate in {len(measurements)} images: name other shards")
        measures: dict[str, float] = {}
        for index, min_iou in enumerate(IOUS):
            matched = sum(m["matched"][index] for m in measurements)
            measures[f"precision_at_{min_iou:g}"] = matched / max(1, num_generated)
            measures[f"recall_at_{min_iou:g}"] = matched / num_masks
        per_image = num_generated / len(measurements)
        measures |= {"masks_per_image": per_image, "num_masks": num_masks, "num_images": len(measurements)}
        return Summary(measures=measures)
