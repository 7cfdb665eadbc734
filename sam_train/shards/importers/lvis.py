"""Import of LVIS: COCO's images with more and finer masks. Its JSON names images by URL, `coco_url`."""

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
    missing: Literal["error", "skip"] = "error",
    counts: Counter[str] | None = None,
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import an LVIS JSON, in the order of file names.

    The end of `coco_url`, such as val2017/000000266409.jpg, is the path of an image below --images; if the file does not exist,
    it is searched for directly in --images. Nothing is downloaded. Everything else is as in `sam-data import coco`, except that
    LVIS has no crowd annotations.

    Args:
        images: Folder that holds train2017 and val2017, or the images themselves.
        annotations: LVIS JSON.
        missing: Action for an image file that does not exist; "skip" counts them as picture_missing.

    Raises:
        ShardError: Names the file and the entry, as `import_coco` does.
    """

    def path_of(name: str) -> Path:
        return images / name if (images / name).is_file() else images / PurePosixPath(name).name

    return build_image_records(
        read_instances(annotations, _name_in_url),
        path_of,
        annotator="lvis",
        skip_missing=missing == "skip",
        keep_crowd=True,
        counts=Counter() if counts is None else counts,
    )


def _name_in_url(image: dict[str, Any], place: str) -> str:
    url = image.get("coco_url")
    if not isinstance(url, str):
        raise ShardError(f"{place} has no 'coco_url', by which LVIS names images: import a JSON with 'file_name' as coco")
    try:
        path = urlsplit(url).path
    except ValueError as error:
        raise ShardError(f"{place}: {url[:200]!r} is not a URL: {error}") from error
    checked_relative_path(path.lstrip("/"), place=place)
    return "/".join(PurePosixPath(path.lstrip("/")).parts[-2:])
