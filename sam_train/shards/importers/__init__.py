"""Data sets to shards: `sam-data import KIND ...`.

An importer is one generator that yields `(ImageRecord, JPEG bytes)` in an order that depends on its inputs alone. To add
one, write it in a module here and name it in `IMPORTERS`; the command makes its options of the signature:

    def import_label_maps(
        images: Path, labels: Path, *, min_area: int = 1, counts: Counter[str] | None = None
    ) -> Iterator[tuple[ImageRecord, bytes]]

`sam_train.shards.options` says how. What the importer leaves out on purpose it counts by name in `counts`, which ends up in
the manifests; what is wrong in the data set is a `ShardError` that names the file. `mask_records` and `polygons` make records
of segments, `pairs` finds files that belong together, refuses names that lead out of a folder and reads pictures,
`sam_train.shards.keys` gives keys and image ids. What a data set calls its masks is their name (`sam_train.shards.class_names`).
"""

from collections.abc import Callable, Iterator

from sam_train.records import ImageRecord
from sam_train.shards.importers.binary_masks import import_binary_masks
from sam_train.shards.importers.bsds500 import import_bsds500
from sam_train.shards.importers.coco import import_coco
from sam_train.shards.importers.label_maps import import_label_maps
from sam_train.shards.importers.lvis import import_lvis
from sam_train.shards.importers.panoptic import import_panoptic
from sam_train.shards.importers.sa1b import import_sa1b
from sam_train.shards.importers.yolo import import_yolo

IMPORTERS: dict[str, Callable[..., Iterator[tuple[ImageRecord, bytes]]]] = {
    "sa1b": import_sa1b,
    "coco": import_coco,
    "lvis": import_lvis,
    "label_maps": import_label_maps,
    "binary_masks": import_binary_masks,
    "yolo": import_yolo,
    "panoptic": import_panoptic,
    "bsds500": import_bsds500,
}
"""Kind, as the command line has it -> the generator."""

__all__ = ["IMPORTERS", "import_label_maps"]
