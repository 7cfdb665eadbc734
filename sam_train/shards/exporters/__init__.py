"""Conversion of shards to the formats of other tools: `sam-data export KIND ...`.

An exporter is a function that receives samples one by one and fills a folder. To add one, write it in a module of this package
and add it to `EXPORTERS`; further parameters become options (see `sam_train.shards.options`):

    def export_label_maps(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str]) -> None

It counts by name in `counts` what the format cannot represent. `folder.ExportFolder` names and writes the files. A parameter
`shards` receives the paths of the shards, by which `classes.number_classes` numbers the classes.
"""

from collections.abc import Callable

from sam_train.shards.exporters.coco import export_coco
from sam_train.shards.exporters.cvat import export_cvat
from sam_train.shards.exporters.label_maps import export_label_maps
from sam_train.shards.exporters.label_studio import export_label_studio
from sam_train.shards.exporters.labelme import export_labelme
from sam_train.shards.exporters.overlays import export_overlays
from sam_train.shards.exporters.pascal_voc import export_voc
from sam_train.shards.exporters.yolo import export_yolo

EXPORTERS: dict[str, Callable[..., None]] = {
    "coco": export_coco,
    "yolo": export_yolo,
    "label_maps": export_label_maps,
    "labelme": export_labelme,
    "cvat": export_cvat,
    "voc": export_voc,
    "label_studio": export_label_studio,
    "overlays": export_overlays,
}
"""Kind on the command line -> function."""

__all__ = ["EXPORTERS"]
