"""AP of instance masks, by COCO's rules or LVIS's.

pycocotools is the reference. hotcoco (extra `evaluation`) gives the same numbers many times faster, and LVIS's federated rules,
for which the reference `lvis` no longer runs; tests hold both to each other. Boundary AP is Cheng et al.'s (2021): IoU is
the lesser of mask IoU and boundary IoU, the rest as it was.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_train.errors import ConfigError
from sam_train.metrics.boundary_iou import boundary

ENGINES = ("hotcoco", "pycocotools")
RULES = ("coco", "lvis")
IOUS = ("mask", "boundary")
METRIC_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
LVIS_METRIC_NAMES = dict(
    zip(
        (*METRIC_NAMES, "ap_frequent", "ap_common", "ap_rare"),
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "APf", "APc", "APr"),
        strict=True,
    )
)
"""Ours -> hotcoco's and lvis-api's."""

Result = Mapping[str, Any]
"""COCO's results format: image_id, category_id, segmentation (compressed RLE), score."""


def check_engine(engine: str, *, rules: str = "coco", iou: str = "mask") -> None:
    """Raise ConfigError unless `engine` is there and can do that: at once, not after hours of predictions."""
    for name, value, known in (("engine", engine, ENGINES), ("rules", rules, RULES), ("iou", iou, IOUS)):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if rules == "lvis" and (engine, iou) != ("hotcoco", "mask"):
        raise ConfigError("LVIS's rules are known to engine=hotcoco, for masks: boundary AP and pycocotools go by COCO's")
    if iou == "boundary" and engine != "pycocotools":
        raise ConfigError("boundary AP is computed by engine=pycocotools")
    if engine == "hotcoco":
        _hotcoco()


def coco_scores(
    truth: Path,
    results: Sequence[Result],
    images: Sequence[int],
    *,
    engine: str = "hotcoco",
    rules: str = "coco",
    iou: str = "mask",
) -> dict[str, float]:
    """AP over IoU 0.5 to 0.95, at 0.5 and 0.75, and of small, medium and large objects; by LVIS's rules also of frequent,
    common and rare categories. -1, as pycocotools has it, where there is no such object.

    truth: an instances JSON; images: the ids of those to judge on. Raises ConfigError as `check_engine` does, and when there
    are no results.
    """
    check_engine(engine, rules=rules, iou=iou)
    if not results:
        raise ConfigError("there is no result to judge: no box of the detector lies in an image that was measured")
    if engine == "pycocotools":
        return _by_pycocotools(truth, results, images, iou)
    return _by_hotcoco(truth, results, images, rules)


def _by_pycocotools(truth: Path, results: Sequence[Result], images: Sequence[int], iou: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        known = COCO(truth)
        for annotation in known.anns.values():
            annotation.setdefault("iscrowd", 0)
        evaluation = (_BoundaryEval if iou == "boundary" else COCOeval)(known, known.loadRes([dict(r) for r in results]), "segm")
        evaluation.params.imgIds = list(images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=False)}


def _by_hotcoco(truth: Path, results: Sequence[Result], images: Sequence[int], rules: str) -> dict[str, float]:
    hotcoco = _hotcoco()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "results.json"
        path.write_text(json.dumps(results))
        known = hotcoco.COCO(str(truth))
        evaluation = hotcoco.COCOeval(known, known.load_res(str(path)), "segm", lvis_style=rules == "lvis")
        evaluation.params.img_ids = list(images)
        evaluation.run()
    if rules == "lvis":
        found = evaluation.get_results()
        return {name: float(found[theirs]) for name, theirs in LVIS_METRIC_NAMES.items()}
    return {name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=False)}


def _hotcoco() -> ModuleType:
    try:
        import hotcoco
    except ImportError as error:
        raise ConfigError("engine=hotcoco needs the extra: pip install 'sam-train[evaluation]'") from error
    return hotcoco


class _BoundaryEval(COCOeval):
    """COCOeval whose IoU is the lesser of mask IoU and boundary IoU."""

    def computeIoU(self, imgId: Any, catId: Any) -> Any:  # the reference's own names
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truths, found = (self._of(kept, imgId, catId) for kept in (self._gts, self._dts))
        best_first = np.argsort([-result["score"] for result in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = [int(truth["iscrowd"]) for truth in truths]
        outlines = coco_mask.iou(
            [_boundary_rle(found[i]["segmentation"]) for i in best_first],
            [_boundary_rle(truth["segmentation"]) for truth in truths],
            crowd,
        )
        return np.minimum(ious, outlines)

    def _of(self, kept: Mapping[tuple[int, int], list[dict[str, Any]]], image: Any, category: Any) -> list[dict[str, Any]]:
        categories = [category] if self.params.useCats else self.params.catIds
        return [entry for c in categories for entry in kept[image, c]]


def _boundary_rle(rle: Any) -> Any:
    return coco_mask.encode(np.asfortranarray(boundary(coco_mask.decode(rle).astype(bool)), dtype=np.uint8))
