"""Conversion of data sets to shards: `sam-data import KIND ...`.

An importer lists `ImageItem`s, one per image, in an order that depends on its inputs only; the decorator `importer` makes a
generator of `(ImageRecord, JPEG bytes)` of it. To add one, write it in a module of this package and add it to `IMPORTERS`; the
command derives its options from the signature and the `Args:` section of the docstring (see `sam_train.shards.options`):

    @importer(default_frame="upright")
    def import_label_maps(images: Path, labels: Path, *, min_area: int = 1, report: ImportReport) -> list[ImageItem]

The contract: each file found and each annotation read is imported, refused by name (ShardError), or counted by reason in
`report`, which the manifests store. `report.entry` handles a wrong entry as --bad says, `report.absent` an absent file as
--missing says. `importer.SHARED_OPTIONS` are the options that mean the same for every kind. `mask_records`, `polygons` and
`segmentations` create records of masks, `file_pairing` finds files and rejects names that lead out of a folder, `mask_files`
reads masks from images, and `json_values` reads numbers as tools write them.
"""

from collections.abc import Callable, Iterator

from sam_train.records import ImageRecord
from sam_train.shards.importers.amg import import_amg
from sam_train.shards.importers.binary_masks import import_binary_masks
from sam_train.shards.importers.bsds500 import import_bsds500
from sam_train.shards.importers.coco import import_coco
from sam_train.shards.importers.colour_masks import import_colour_masks
from sam_train.shards.importers.cvat import import_cvat
from sam_train.shards.importers.label_maps import import_label_maps
from sam_train.shards.importers.label_studio import import_label_studio
from sam_train.shards.importers.labelme import import_labelme
from sam_train.shards.importers.lvis import import_lvis
from sam_train.shards.importers.panoptic import import_panoptic
from sam_train.shards.importers.pascal_voc import import_voc
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
    "labelme": import_labelme,
    "cvat": import_cvat,
    "amg": import_amg,
    "voc": import_voc,
    "label_studio": import_label_studio,
    "colour_masks": import_colour_masks,
}
"""Kind on the command line -> generator."""

__all__ = ["IMPORTERS", "import_label_maps"]
