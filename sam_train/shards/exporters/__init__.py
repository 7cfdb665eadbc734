"""Shards to the forms that other tools read: `sam-data export KIND ...`.

An exporter is a function that takes samples one by one and fills a folder. To add one, write it in a module here and name it
in `EXPORTERS`; further parameters become options as `sam_train.shards.options` says:

    def export_label_maps(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str]) -> None

What the form cannot hold it counts by name in `counts`. `folder.ExportFolder` names and writes the files.
"""

from collections.abc import Callable

from sam_train.shards.exporters.coco import export_coco
from sam_train.shards.exporters.label_maps import export_label_maps
from sam_train.shards.exporters.overlays import export_overlays
from sam_train.shards.exporters.yolo import export_yolo

EXPORTERS: dict[str, Callable[..., None]] = {
    "coco": export_coco,
    "yolo": export_yolo,
    "label_maps": export_label_maps,
    "overlays": export_overlays,
}
"""Kind, as the command line has it -> the function."""

__all__ = ["EXPORTERS"]
