"""Object proposals: average recall of a thousand automatic masks an image (paper, sections 7.3 and D.3).

The paper changes its generator for this: no crops, no filter by predicted IoU or stability, 64 x 64 clicks, box NMS at 0.9; of
more than a thousand masks those of the highest mean of predicted IoU and stability score are taken. Recall is over the masks
of the shards, classes apart from it; with LVIS's JSON, also over those of frequent, common and rare categories.
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
from sam_train.inference import AutomaticMaskGenerator, Predictor
from sam_train.metrics.recall import AREAS, average_recall, count_recalled_objects, proposal_ious
from sam_train.records import ImageRecord, MaskRecord, Rle
from sam_train.shards import decode_jpeg
from sam_train.shards.importers.instances_json import integer_field, read_json_object

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
    """An automatic mask and what it is ranked by."""

    rle: Rle
    rank: float


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a JSON knows of a true mask."""

    area: float
    frequency: str | None


class ProposalProtocol(EvaluationProtocol):
    """The protocol with its choices.

    generator: with the paper's changes in configs/protocol/proposals.yaml.
    max_proposals: 1000 an image.
    annotations: the JSON that the shards were imported from, COCO's or LVIS's. Masks are known in it by their id; their area is
        then what it says, not what is measured on the mask, and LVIS's says how frequent a mask's category is.
    min_area_px: true masks below it are not asked about; 0 is LVIS's rule, for other shards one may want more.
    """

    def __init__(
        self,
        *,
        generator: AutomaticMaskGenerator,
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
        truths = [mask.segmentation for mask in sample.record.masks]
        ious = proposal_ious([proposal.rle for proposal in proposals], truths)
        return {
            "num_proposals": len(proposals),
            "groups": {name: [len(of), count_recalled_objects(ious[:, of]).tolist()] for name, of in groups.items()},
        }

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        names = list(dict.fromkeys(name for m in measurements for name in m["groups"]))
        sums = {name: [m["groups"][name] for m in measurements if name in m["groups"]] for name in names}
        if not sum(count for count, _ in sums.get("all", [])):
            raise ConfigError(f"no mask to measure by in {len(measurements)} images: name other shards")
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
        """At most `max_proposals` masks of an H x W x 3 uint8 RGB image, best rank first."""
        generated, _ = self.generator.generate(predictor.model, image)
        found = [Proposal(g.rle, (g.predicted_iou + g.stability_score) / 2) for g in generated]
        return sorted(found, key=lambda proposal: -proposal.rank)[: self.max_proposals]

    def _groups(self, record: ImageRecord) -> dict[str, list[int]]:
        """Name of a group of masks -> their places in the record."""
        known = [self._known(record, mask) for mask in record.masks]
        large = [place for place, mask in enumerate(record.masks) if mask.area >= self.min_area_px]
        groups = {"all": large}
        for name, (least, most) in AREAS.items():
            groups[name] = [place for place in large if least <= known[place].area <= most]
        if any(annotation.frequency for annotation in self.annotations.values()):
            for name in FREQUENCIES.values():
                groups[name] = [place for place in large if known[place].frequency == name]
        return groups

    def _known(self, record: ImageRecord, mask: MaskRecord) -> Annotation:
        if not self.annotations:
            return Annotation(mask.area, None)
        if mask.id not in self.annotations:
            raise ConfigError(
                f"mask {mask.id} of {record.key} is not in protocol.annotations: give the JSON that the shards were imported from"
            )
        return self.annotations[mask.id]


def _read_annotations(path: Path) -> dict[int, Annotation]:
    """By annotation id. Raises ShardError, naming file and entry, for what is no instances JSON."""
    document = read_json_object(path, ("annotations", "categories"))
    frequencies = {
        integer_field(category, "id", place=f"{path}, categories"): FREQUENCIES.get(str(category.get("frequency")))
        for category in document["categories"]
    }
    found = {}
    for index, annotation in enumerate(document["annotations"]):
        place = f"{path}, annotations[{index}]"
        area = annotation.get("area")
        if type(area) not in (int, float):
            raise ShardError(f"{place}: expected a number as 'area', got {str(area)[:80]}")
        frequency = frequencies.get(integer_field(annotation, "category_id", place=place))
        found[integer_field(annotation, "id", place=place)] = Annotation(area, frequency)
    return found
