"""Import of COCO's instances format: a JSON file and a folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.importers.file_pairing import checked_relative_path
from sam_train.shards.importers.instances_json import build_image_records, read_instances


def import_coco(
    images: Path,
    annotations: Path,
    *,
    missing: Literal["error", "skip"] = "error",
    keep_crowd: bool = False,
    counts: Counter[str] | None = None,
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import a COCO instances JSON, in the order of file names.

    The polygons of an object become one mask; compressed RLE is stored unchanged. Ids are those of the JSON; the name of a
    category becomes the name of its masks. Masks refer to the pixels as stored, as in COCO's own tools: the EXIF orientation of
    an image is removed, unless only the upright image has the size in the JSON. An image without annotations becomes a record
    without masks.

    Dropped and counted: "crowd" (annotations of groups, with iscrowd=1, unless --keep-crowd is given), "mask_without_pixels",
    "polygon_below_3_points", "polygon_without_pixels", and with --missing skip "picture_missing". Also counted: polygons
    clipped at the border of the image as "polygon_clipped", and masks of a category that the JSON does not list as
    "category_unknown".

    Args:
        images: Folder to which `file_name` in the JSON is relative.
        annotations: Instances JSON.
        missing: Action for an image file that does not exist; "skip" counts them as picture_missing.
        keep_crowd: Import crowd annotations as masks as well.

    Raises:
        ShardError: Names the file and the entry, for an invalid JSON, names that lead out of the folder, an image that is
            missing, unreadable or of another size than in the JSON, and masks that do not fit their image.
    """
    return build_image_records(
        read_instances(annotations, _file_name),
        images.joinpath,
        annotator="coco",
        skip_missing=missing == "skip",
        keep_crowd=keep_crowd,
        counts=Counter() if counts is None else counts,
    )


def _file_name(image: dict[str, Any], place: str) -> str:
    if "file_name" not in image and "coco_url" in image:
        raise ShardError(f"{place} has a 'coco_url' and no 'file_name', as LVIS does: import it as lvis")
    return checked_relative_path(image.get("file_name"), place=place)
