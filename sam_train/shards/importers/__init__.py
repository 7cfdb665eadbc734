"""Conversion of data sets to shards: `sam-data import KIND ...`.

An importer is a generator that yields `(ImageRecord, JPEG bytes)` in an order that depends on its inputs only. To add one, write
it in a module of this package and add it to `IMPORTERS`; the command derives its options from the signature and the `Args:`
section of the docstring (see `sam_train.shards.options`):

    def import_label_maps(
        images: Path, labels: Path, *, min_area: int = 1, counts: Counter[str] | None = None
    ) -> Iterator[tuple[ImageRecord, bytes]]

The importer counts by name in `counts` what it drops on purpose; the counts are stored in the manifests. An error in the data set
is a `ShardError` that names the file. `mask_records` and `polygons` create records of masks; `file_pairing` matches files,
rejects names that lead out of a folder and decodes images; `sam_train.shards.keys` creates keys and image ids; and
`sam_train.shards.class_names` reads class names, which are stored as the masks' names.
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
"""Kind on the command line -> generator."""

__all__ = ["IMPORTERS", "import_label_maps"]
