"""COCO's instances: a JSON and a folder of pictures."""

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
    missing: Literal["error", "leave_out"] = "error",
    keep_crowd: bool = False,
    counts: Counter[str] | None = None,
) -> Iterator[tuple[ImageRecord, bytes]]:
    """The images of an instances JSON and their masks to records and JPEG bytes, in the order of file names.

    `images` is the folder that `file_name` counts from, `annotations` the JSON. An object's polygons become one mask;
    compressed RLE is kept as it stands. Ids are the JSON's; a category's name becomes its masks' (`Provenance.name`). Masks
    count in the pixels as stored, as COCO's own tools have it: a picture's EXIF orientation is dropped, unless only the
    upright picture has the size that the JSON names. An image without annotations yields a record without masks.

    Left out and counted: "crowd" (groups that were not told apart; --keep-crowd takes them), "mask_without_pixels",
    "polygon_below_3_points", "polygon_without_pixels", and with --missing leave_out "picture_missing". "polygon_clipped"
    counts outlines that were cut at the picture's border, "category_unknown" masks of a category that the JSON does not list.

    Raises ShardError, naming file and entry, for a JSON of another form, names that lead out of the folder, a picture that is
    missing, unreadable or of another size than the JSON says, and masks that do not fit their picture.
    """
    return build_image_records(
        read_instances(annotations, _file_name),
        images.joinpath,
        annotator="coco",
        leave_missing_out=missing == "leave_out",
        keep_crowd=keep_crowd,
        counts=Counter() if counts is None else counts,
    )


def _file_name(image: dict[str, Any], place: str) -> str:
    if "file_name" not in image and "coco_url" in image:
        raise ShardError(f"{place} has a 'coco_url' and no 'file_name', as LVIS does: import it as lvis")
    return checked_relative_path(image.get("file_name"), place=place)
