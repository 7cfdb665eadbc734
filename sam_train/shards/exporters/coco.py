"""Export to COCO's instances format: a JSON file and a folder of images."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sam_train.files import atomic_write
from sam_train.records import MaskRecord, Rle
from sam_train.rle import decode_rle
from sam_train.shards.exporters.classes import number_classes
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings
from sam_train.shards.importers.mask_records import parse_rle
from sam_train.shards.tar_members import Sample


class _UniqueIds:
    """Ids from `lowest` up, each assigned once."""

    def __init__(self, lowest: int) -> None:
        self._assigned: set[int] = set()
        self._lowest, self._highest = lowest, lowest - 1

    def assign(self, preferred: int) -> int:
        is_free = preferred >= self._lowest and preferred not in self._assigned
        number = preferred if is_free else self._highest + 1
        self._assigned.add(number)
        self._highest = max(self._highest, number)
        return number


class _JsonListWriter:
    """Writer of a JSON list, one entry at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._separator = stream, b"\n"

    def add(self, entry: dict[str, Any]) -> None:
        self._stream.write(self._separator + json.dumps(entry, separators=(",", ":")).encode())
        self._separator = b",\n"


def export_coco(
    samples: Iterable[Sample],
    folder: ExportFolder,
    counts: Counter[str],
    *,
    shards: Sequence[Path],
    mask_format: Literal["rle", "polygons"] = "rle",
    names: Path | None = None,
) -> None:
    """Write instances.json in COCO's format and the folder images.

    Masks are compressed RLE, bit-identical to those of the shard; COCO's tools accept RLE wherever they accept polygons. iscrowd
    is 0. With polygons, each mask is one polygon along the edges of its pixels, with bridges between its parts and holes, counted
    as "mask_with_bridges": CVAT shows it as a polygon, and Label Studio's converter, which reads the first polygon of a mask and
    no RLE, accepts it. pycocotools and `sam-data import coco` restore the same pixels from it.

    Each mask name becomes a category. Its id is that of the imported data set, whose unused categories are listed as well, or
    that in --names; other names are numbered in alphabetical order. So exports of several splits of a data set agree. Masks
    without a name have the category "object". Ids of images and masks are those of the shard unless they are taken (or a mask's
    is 0); then a new one is assigned and counted as "image_id_changed" or "mask_id_changed". predicted_iou and stability_score
    are added to COCO's keys. A mask without pixels is written as RLE like any other; with polygons it is skipped and counted as
    "mask_without_pixels".

    One image is in memory at a time.

    Args:
        mask_format: Format of the masks, RLE or polygons.
        names: File of class names (data.yaml, or text with one name per line from 0) whose numbers become category ids.

    Raises:
        ShardError: An RLE does not have the size of its image, or a mask has a name that is not in `names`.
    """
    classes = number_classes(shards, first=1, names=names)
    image_ids, mask_ids = _UniqueIds(0), _UniqueIds(1)  # COCO's evaluation treats the mask id 0 as "no match"
    folder.out.mkdir(parents=True, exist_ok=True)
    # Both lists grow at the same time, but follow each other in the JSON: the second is kept in a temporary file.
    with atomic_write(folder.out / "instances.json") as stream, tempfile.TemporaryFile(dir=folder.out) as temporary:
        images, annotations = _JsonListWriter(stream), _JsonListWriter(temporary)
        stream.write(b'{"info":{"description":"Exported by sam-data export coco"},"licenses":[],\n"images":[')
        for sample in samples:
            record = sample.record
            name = folder.add_image(record, sample.jpeg)
            image_id = image_ids.assign(record.image_id)
            counts.update(["image_id_changed"] if image_id != record.image_id else [])
            images.add({"id": image_id, "width": record.width, "height": record.height, "file_name": f"{name}.jpg"})
            for mask in record.masks:
                place = f"{sample.shard}, {record.key}, mask {mask.id}"
                rle = parse_rle(mask.segmentation, height=record.height, width=record.width, place=place)
                segmentation = mask.segmentation if mask_format == "rle" else _polygons(rle, counts)
                if not segmentation:
                    continue
                mask_id = mask_ids.assign(mask.id)
                counts.update(["mask_id_changed"] if mask_id != mask.id else [])
                category = classes.number_of(mask.name, place=place)
                annotations.add(_annotation(mask, mask_id, image_id, category) | {"segmentation": segmentation})
        temporary.seek(0)
        stream.write(b'],\n"annotations":[')
        shutil.copyfileobj(temporary, stream)
        stream.write(b'],\n"categories":[')
        categories = _JsonListWriter(stream)
        for number, name in classes.names.items():
            categories.add({"id": number, "name": name})
        stream.write(b"]}\n")


def _annotation(mask: MaskRecord, mask_id: int, image_id: int, category_id: int) -> dict[str, Any]:
    return {
        "id": mask_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "bbox": mask.bbox,
        "area": mask.area,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
    }


def _polygons(rle: Rle, counts: Counter[str]) -> list[list[int]]:
    """Return a list of one polygon x, y, x, y, ..., empty for a mask without pixels."""
    height, width = rle["size"]
    rings = mask_to_rings(decode_rle(rle, height=height, width=width))
    counts.update(["mask_without_pixels"] if not rings else ["mask_with_bridges"] if len(rings) > 1 else [])
    return [join_rings(rings).ravel().tolist()] if rings else []
