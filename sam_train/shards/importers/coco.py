"""Import of COCO's instances format: a JSON file and a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_train.errors import ShardError
from sam_train.shards.importers.file_pairing import ImageFolder
from sam_train.shards.importers.image_items import ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.instances_json import instance_items, read_instances
from sam_train.shards.importers.report import ImportReport


@importer(default_frame="stored")
def import_coco(images: Path, annotations: Path, *, drop_crowd: bool = False, report: ImportReport) -> list[ImageItem]:
    """Import a COCO instances JSON, in the order of file names.

    The polygons of an object become one mask; compressed RLE is stored unchanged. Ids are those of the JSON; the name of a
    category becomes the name of its masks. Masks refer to the pixels as stored, as in COCO's own tools, unless the sizes in the
    JSON are those of upright images (see --frame). An image without annotations becomes a record without masks.

    Annotations with iscrowd=1 are kept, because converters mark every RLE so; COCO's own are groups of objects, which
    --drop-crowd drops. Numbers as text or with a fraction of zero, lists of points, and paths of Windows or from the root are
    read and counted as "number_normalised", "polygon_normalised" and "file_name_normalised".

    Dropped and counted: "box_without_polygon", "mask_without_pixels", "polygon_below_3_points", "polygon_without_pixels". Also
    counted: polygons clipped at the border of the image as "polygon_clipped", masks of a category that the JSON does not list as
    "category_unknown", and ids that were absent or not unique in their image as "mask_id_assigned" and "mask_id_changed".

    Args:
        images: Folder to which `file_name` in the JSON is relative.
        annotations: Instances JSON.

    Raises:
        ShardError: Names the file and the entry, for an invalid JSON, names that lead out of the folder, an image that is
            missing, unreadable or of another size than in the JSON, and masks that do not fit their image.
    """
    folder = ImageFolder(images)

    def name_of(image: dict[str, Any], place: str) -> str:
        if "file_name" not in image and "coco_url" in image:
            raise ShardError(f"{place} has a 'coco_url' and no 'file_name', as LVIS does: import it as lvis")
        return folder.relative_name(image.get("file_name"), report, place=place)

    found = read_instances(annotations, name_of, report)
    return instance_items(found, folder.find, annotator="coco", drop_crowd=drop_crowd, report=report)
