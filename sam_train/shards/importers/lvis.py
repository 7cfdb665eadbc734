"""Import of LVIS: COCO's images with more and finer masks. Its JSON names images by URL, `coco_url`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sam_train.errors import ShardError
from sam_train.shards.importers.file_pairing import checked_relative_path
from sam_train.shards.importers.image_items import ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.instances_json import instance_items, read_instances
from sam_train.shards.importers.report import ImportReport


@importer(default_frame="stored")
def import_lvis(images: Path, annotations: Path, *, report: ImportReport) -> list[ImageItem]:
    """Import an LVIS JSON, in the order of file names.

    The end of `coco_url`, such as val2017/000000266409.jpg, is the path of an image below --images; if the file does not exist,
    it is searched for directly in --images. Nothing is downloaded. Everything else is as in `sam-data import coco`, except that
    LVIS has no crowd annotations.

    Args:
        images: Folder that holds train2017 and val2017, or the images themselves.
        annotations: LVIS JSON.

    Raises:
        ShardError: Names the file and the entry, as `import_coco` does.
    """

    def path_of(name: str) -> Path:
        return images / name if (images / name).is_file() else images / PurePosixPath(name).name

    found = read_instances(annotations, _name_in_url, report)
    return instance_items(found, path_of, annotator="lvis", drop_crowd=False, report=report)


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
