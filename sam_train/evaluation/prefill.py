"""What stage two shows before the annotator looks: how much of it is right, and how much of what is there it shows.

Masks of a maker (a generator with strict thresholds, or a proposer's boxes through the decoder) against the masks of the shards,
one to one, greedily from the surest on.
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
    """The protocol with its choice of a maker: protocol/prefill, `generator@protocol.generator=proposer` for the other."""

    def __init__(self, *, generator: MaskGenerator) -> None:
        self.generator = generator

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        return list_shard_images(shards)

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        sample = load_sample(image_entry)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
        masks, _ = self.generator.generate(predictor.model, image)
        truths = [mask.segmentation for mask in sample.record.masks]
        ious = torch.from_numpy(proposal_ious([mask.rle for mask in masks], truths))
        return {"found": len(masks), "there": len(truths), "matched": [count_matches(ious, least) for least in IOUS]}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        found, there = (sum(m[name] for m in measurements) for name in ("found", "there"))
        if not there:
            raise ConfigError(f"no mask to measure by in {len(measurements)} images: name other shards")
        measures: dict[str, float] = {}
        for place, least in enumerate(IOUS):
            matched = sum(m["matched"][place] for m in measurements)
            measures[f"precision_at_{least:g}"] = matched / max(1, found)
            measures[f"recall_at_{least:g}"] = matched / there
        measures |= {"masks_per_image": found / len(measurements), "num_masks": there, "num_images": len(measurements)}
        return Summary(measures=measures)
