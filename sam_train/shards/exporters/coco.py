"""Shards to COCO's instances: a JSON and a folder of pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO

from sam_train.files import written_whole
from sam_train.records import MaskRecord
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.importers.mask_records import checked_rle
from sam_train.shards.members import Sample


class _Numbers:
    """Ids from `lowest` up that are each given once."""

    def __init__(self, lowest: int) -> None:
        self._taken: set[int] = set()
        self._lowest, self._highest = lowest, lowest - 1

    def take(self, wanted: int) -> int:
        given = wanted if wanted >= self._lowest and wanted not in self._taken else self._highest + 1
        self._taken.add(given)
        self._highest = max(self._highest, given)
        return given


class _ListFile:
    """A JSON list that is written entry by entry."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._before = stream, b"\n"

    def add(self, entry: dict[str, Any]) -> None:
        self._stream.write(self._before + json.dumps(entry, separators=(",", ":")).encode())
        self._before = b",\n"


def export_coco(samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str]) -> None:
    """Samples to out/instances.json and out/images, one image in memory at a time.

    Masks are compressed RLE, bit by bit what the shard has, which COCO's tools take anywhere in place of polygons; iscrowd is
    0 and the one category "object", since shards have no classes. Ids are the shard's where they are not taken (and a mask's is
    above 0), else new ones and counted as "image_id_changed", "mask_id_changed". predicted_iou and stability_score stand beside
    COCO's keys, for whoever knows them. A mask without a pixel is written like the others.

    Raises ShardError for an RLE that does not fit its image.
    """
    image_ids, mask_ids = _Numbers(0), _Numbers(1)  # COCO's evaluation takes a mask's id 0 for "no match"
    folder.out.mkdir(parents=True, exist_ok=True)
    # Two lists grow at once, and a JSON holds them one after the other.
    with written_whole(folder.out / "instances.json") as stream, tempfile.TemporaryFile(dir=folder.out) as later:
        images, annotations = _ListFile(stream), _ListFile(later)
        stream.write(b'{"categories":[{"id":1,"name":"object"}],\n"images":[')
        for sample in samples:
            record = sample.record
            name = folder.add_picture(record, sample.jpeg)
            image_id = image_ids.take(record.image_id)
            counts.update(["image_id_changed"] if image_id != record.image_id else [])
            images.add({"id": image_id, "width": record.width, "height": record.height, "file_name": f"{name}.jpg"})
            for mask in record.masks:
                place = f"{sample.shard}, {record.key}, mask {mask.id}"
                checked_rle(mask.segmentation, height=record.height, width=record.width, place=place)
                mask_id = mask_ids.take(mask.id)
                counts.update(["mask_id_changed"] if mask_id != mask.id else [])
                annotations.add(_annotation(mask, mask_id, image_id))
        later.seek(0)
        stream.write(b'],\n"annotations":[')
        shutil.copyfileobj(later, stream)
        stream.write(b"]}\n")


def _annotation(mask: MaskRecord, mask_id: int, image_id: int) -> dict[str, Any]:
    return {
        "id": mask_id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": mask.bbox,
        "area": mask.area,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "segmentation": mask.segmentation,
    }
