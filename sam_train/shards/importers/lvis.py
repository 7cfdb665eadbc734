"""LVIS: COCO's pictures with more and finer masks. Its images are named by address, `coco_url`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards.importers.file_pairing import checked_relative_path
from sam_train.shards.importers.instances_json import build_image_records, read_instances


def import_lvis(
    images: Path,
    annotations: Path,
    *,
    missing: Literal["error", "leave_out"] = "error",
    counts: Counter[str] | None = None,
) -> Iterator[tuple[ImageRecord, bytes]]:
    """The images of an LVIS JSON and their masks to records and JPEG bytes, in the order of file names.

    The end of `coco_url`, such as val2017/000000266409.jpg, says where a picture lies below `images`, the folder that holds
    train2017 and val2017; where it is not there it is looked for in `images` itself. Nothing is fetched. The rest is as with
    COCO, but that LVIS has no crowds.

    Raises ShardError, naming file and entry, as the import of COCO does.
    """

    def path_of(name: str) -> Path:
        return images / name if (images / name).is_file() else images / PurePosixPath(name).name

    return build_image_records(
        read_instances(annotations, _name_in_url),
        path_of,
        annotator="lvis",
        leave_missing_out=missing == "leave_out",
        keep_crowd=True,
        counts=Counter() if counts is None else counts,
    )


def _name_in_url(image: dict[str, Any], place: str) -> str:
    url = image.get("coco_url")
    if not isinstance(url, str):
        raise ShardError(f"{place} has no 'coco_url', which names LVIS's pictures: a JSON with 'file_name' is imported as coco")
    try:
        path = urlsplit(url).path
    except ValueError as error:
        raise ShardError(f"{place}: {url[:200]!r} is no address: {error}") from error
    checked_relative_path(path.lstrip("/"), place=place)
    return "/".join(PurePosixPath(path.lstrip("/")).parts[-2:])
