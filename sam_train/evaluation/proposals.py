"""Object proposals: average recall of a thousand automatic masks per image (paper, sections 7.3 and D.3).

The paper changes its generator for this: no crops, no filter by predicted IoU or stability, 64 x 64 clicks, box NMS at 0.9; of
more than a thousand masks, those with the highest mean of predicted IoU and stability score are kept. Recall is measured on the
masks of the shards regardless of their classes; with LVIS's JSON also for frequent, common and rare categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
)
from sam_train.inference import GridMaskGenerator, Predictor
from sam_train.metrics.recall import AREAS, average_recall, count_recalled_objects, proposal_ious
from sam_train.records import ImageRecord, MaskRecord, Rle
from sam_train.shards import decode_jpeg
from sam_train.shards.importers.json_values import integer_field, read_json_object

FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}

PAPER = {
    "paper: SAM ViT-H, LVIS v1 val": dict(
        zip(
            ("ar", "ar_small", "ar_medium", "ar_large", "ar_frequent", "ar_common", "ar_rare"),
            (0.593, 0.455, 0.816, 0.869, 0.591, 0.639, 0.658),
            strict=True,
        )
    ),
    "ViTDet-H": {"ar": 0.630},
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """An automatic mask and the score by which it is ranked."""

    rle: Rle
    score: float


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Area in pixels and LVIS frequency of a ground-truth mask; the frequency is None without LVIS's JSON."""

    area: float
    frequency: str | None


class ProposalProtocol(EvaluationProtocol):
    """Average recall (AR) of automatic masks.

    generator: configs/protocol/proposals.yaml has it with the paper's changes.
    max_proposals: largest number of proposals per image, 1000 (paper).
    annotations: the JSON of COCO or LVIS from which the shards were imported. Masks are found in it by their id. Areas are then
        those of the JSON, not measured on the masks, and LVIS's JSON provides the frequency of each category.
    min_area_px: smaller ground-truth masks are skipped; 0 is LVIS's rule.

    Raises ShardError if `annotations` is not an instances JSON.
    """

    def __init__(
        self,
        *,
        generator: GridMaskGenerator,
        max_proposals: int = 1000,
        annotations: str | None = None,
        min_area_px: int = 0,
    ) -> None:
        self.generator, self.max_proposals, self.min_area_px = generator, max_proposals, min_area_px
        self.annotations = {} if annotations is None else _read_annotations(Path(annotations))

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        return list_shard_images(shards)

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        sample = load_sample(image_entry)
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
        proposals = self.proposals(predictor, image)
        groups = self._groups(sample.record)
        ground_truth = [mask.segmentation for mask in sample.record.masks]
        ious = proposal_ious([proposal.rle for proposal in proposals], ground_truth)
        return {
            "num_proposals": len(proposals),
            "groups": {name: [len(masks), count_recalled_objects(ious[:, masks]).tolist()] for name, masks in groups.items()},
        }

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        names = list(dict.fromkeys(name for m in measurements for name in m["groups"]))
        sums = {name: [m["groups"][name] for m in measurements if name in m["groups"]] for name in names}
        if not sum(count for count, _ in sums.get("all", [])):
            raise ConfigError(f"no mask to evaluate in {len(measurements)} images: name other shards")
        measures: dict[str, float] = {}
        for name, parts in sums.items():
            count = sum(count for count, _ in parts)
            if count:
                measures["ar" if name == "all" else f"ar_{name}"] = average_recall([matched for _, matched in parts], count)
        measures |= {f"num_{name}": sum(count for count, _ in parts) for name, parts in sums.items() if name != "all"}
        measures |= {"num_masks": sum(count for count, _ in sums["all"]), "num_images": len(measurements)}
        measures["proposals_per_image"] = sum(m["num_proposals"] for m in measurements) / len(measurements)
        return Summary(measures=measures, paper=PAPER)

    def proposals(self, predictor: Predictor, image: np.ndarray) -> list[Proposal]:
        """Return at most `max_proposals` masks of an H x W x 3 uint8 RGB image, highest score first."""
        generated, _ = self.generator.generate(predictor.model, image)
        proposals = [Proposal(g.rle, (g.predicted_iou + g.stability_score) / 2) for g in generated]
        return sorted(proposals, key=lambda proposal: -proposal.score)[: self.max_proposals]

    def _groups(self, record: ImageRecord) -> dict[str, list[int]]:
        """Return the group names (all, size, frequency), each with the indices of its masks in the record."""
        ground_truth = [self._ground_truth(record, mask) for mask in record.masks]
        large = [index for index, mask in enumerate(record.masks) if mask.area >= self.min_area_px]
        groups = {"all": large}
        for name, (min_area, max_area) in AREAS.items():
            groups[name] = [index for index in large if min_area <= ground_truth[index].area <= max_area]
        if any(annotation.frequency for annotation in self.annotations.values()):
            for name in FREQUENCIES.values():
                groups[name] = [index for index in large if ground_truth[index].frequency == name]
        return groups

    def _ground_truth(self, record: ImageRecord, mask: MaskRecord) -> GroundTruth:
        if not self.annotations:
            return GroundTruth(mask.area, None)
        if mask.id not in self.annotations:
            raise ConfigError(
                f"mask {mask.id} of {record.key} is not in protocol.annotations: give the JSON that the shards were imported from"
            )
        return self.annotations[mask.id]


def _read_annotations(path: Path) -> dict[int, GroundTruth]:
    """Return area and frequency by annotation id. Raises ShardError, with file and entry, if it is not an instances JSON."""
    document = read_json_object(path, ("annotations", "categories"))
    frequencies = {
        integer_field(category, "id", place=f"{path}, categories"): FREQUENCIES.get(str(category.get("frequency")))
        for category in document["categories"]
    }
    ground_truth = {}
    for index, annotation in enumerate(document["annotations"]):
        place = f"{path}, annotations[{index}]"
        area = annotation.get("area")
        if type(area) not in (int, float):
            raise ShardError(f"{place}: expected a number as 'area', got {str(area)[:80]}")
        frequency = frequencies.get(integer_field(annotation, "category_id", place=place))
        ground_truth[integer_field(annotation, "id", place=place)] = GroundTruth(area, frequency)
    return ground_truth
