"""AP of instance masks by the rules of COCO or LVIS.

pycocotools is the reference. hotcoco (extra `evaluation`) gives the same numbers many times faster, and implements LVIS's
federated rules, whose reference package `lvis` no longer runs; tests compare the two. Boundary AP follows Cheng et al. (2021):
its IoU is the minimum of mask IoU and boundary IoU.
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

from sam_train.errors import ConfigError, install_extra
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
"""Names of the LVIS metrics in this project, and in hotcoco and lvis-api."""

CocoResult = Mapping[str, Any]
"""A prediction in COCO's results format: image_id, category_id, segmentation (compressed RLE), score."""


def check_engine(engine: str, *, rules: str = "coco", iou: str = "mask") -> None:
    """Raise ConfigError unless `engine` is installed and supports the rules and IoU; call it before hours of predictions."""
    for name, value, choices in (("engine", engine, ENGINES), ("rules", rules, RULES), ("iou", iou, IOUS)):
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if rules == "lvis" and (engine, iou) != ("hotcoco", "mask"):
        raise ConfigError("rules=lvis needs engine=hotcoco and iou=mask: pycocotools and boundary AP support rules=coco only")
    if iou == "boundary" and engine != "pycocotools":
        raise ConfigError("boundary AP (iou=boundary) needs engine=pycocotools")
    if engine == "hotcoco":
        _hotcoco()


def coco_scores(
    ground_truth: Path,
    results: Sequence[CocoResult],
    image_ids: Sequence[int],
    *,
    engine: str = "hotcoco",
    rules: str = "coco",
    iou: str = "mask",
) -> dict[str, float]:
    """Return AP over IoU 0.5 to 0.95, at 0.5 and 0.75, and of small, medium and large objects.

    By LVIS's rules also AP of frequent, common and rare categories. As in pycocotools, -1 means that there is no such object.

    ground_truth: an instances JSON. image_ids: ids of the images to evaluate. Raises ConfigError as `check_engine` does, and if
    `results` is empty.
    """
    check_engine(engine, rules=rules, iou=iou)
    if not results:
        raise ConfigError("there are no results to evaluate: no box of the detector is in an evaluated image")
    if engine == "pycocotools":
        return _pycocotools_scores(ground_truth, results, image_ids, iou)
    return _hotcoco_scores(ground_truth, results, image_ids, rules)


def _pycocotools_scores(
    ground_truth: Path, results: Sequence[CocoResult], image_ids: Sequence[int], iou: str
) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # suppress progress output
        coco = COCO(ground_truth)
        for annotation in coco.anns.values():
            annotation.setdefault("iscrowd", 0)
        evaluation = (_BoundaryEval if iou == "boundary" else COCOeval)(coco, coco.loadRes([dict(r) for r in results]), "segm")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=False)}


def _hotcoco_scores(ground_truth: Path, results: Sequence[CocoResult], image_ids: Sequence[int], rules: str) -> dict[str, float]:
    hotcoco = _hotcoco()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "results.json"
        path.write_text(json.dumps(results))
        coco = hotcoco.COCO(str(ground_truth))
        evaluation = hotcoco.COCOeval(coco, coco.load_res(str(path)), "segm", lvis_style=rules == "lvis")
        evaluation.params.img_ids = list(image_ids)
        evaluation.run()
    if rules == "lvis":
        scores = evaluation.get_results()
        return {name: float(scores[theirs]) for name, theirs in LVIS_METRIC_NAMES.items()}
    return {name: float(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=False)}


def _hotcoco() -> ModuleType:
    try:
        import hotcoco
    except ImportError as error:
        raise ConfigError(f"engine=hotcoco needs hotcoco: {install_extra('evaluation')}") from error
    return hotcoco


class _BoundaryEval(COCOeval):
    """COCOeval whose IoU is the minimum of mask IoU and boundary IoU."""

    def computeIoU(self, imgId: Any, catId: Any) -> Any:  # names of pycocotools
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        objects, detections = (self._select(table, imgId, catId) for table in (self._gts, self._dts))
        best_first = np.argsort([-result["score"] for result in detections], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = [int(annotation["iscrowd"]) for annotation in objects]
        boundary_ious = coco_mask.iou(
            [_boundary_rle(detections[i]["segmentation"]) for i in best_first],
            [_boundary_rle(annotation["segmentation"]) for annotation in objects],
            crowd,
        )
        return np.minimum(ious, boundary_ious)

    def _select(self, table: Mapping[tuple[int, int], list[dict[str, Any]]], image: Any, category: Any) -> list[dict[str, Any]]:
        categories = [category] if self.params.useCats else self.params.catIds
        return [entry for c in categories for entry in table[image, c]]


def _boundary_rle(rle: Any) -> Any:
    return coco_mask.encode(np.asfortranarray(boundary(coco_mask.decode(rle).astype(bool)), dtype=np.uint8))
