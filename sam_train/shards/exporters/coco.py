"""Shards to COCO's instances: a JSON and a folder of pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO, Literal

from sam_train.files import atomic_write
from sam_train.masks import decode_rle
from sam_train.records import MaskRecord, Rle
from sam_train.shards.class_names import ClassNumbering
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings
from sam_train.shards.importers.mask_records import parse_rle
from sam_train.shards.tar_members import Sample


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


def export_coco(
    samples: Iterable[Sample], folder: ExportFolder, counts: Counter[str], *, form: Literal["rle", "polygons"] = "rle"
) -> None:
    """Samples to out/instances.json and out/images, one image in memory at a time.

    Masks are compressed RLE, bit by bit what the shard has, which COCO's tools take anywhere in place of polygons; iscrowd is
    0. With `form` "polygons" each is one outline along the edges of its pixels, with bridges where it has parts or holes
    ("mask_with_bridges"): CVAT shows it as a polygon, and Label Studio's converter, which takes the first outline of a mask and
    no RLE, reads it. pycocotools and our import make the same pixels of it.

    Each name that masks have is a category, numbered from 1 as they come; those without are of one called "object". Ids
    are the shard's where they are not taken (and a mask's is above 0), else new ones and counted as "image_id_changed",
    "mask_id_changed". predicted_iou and stability_score stand beside COCO's keys, for whoever knows them. A mask without a pixel
    is written like the others; as polygons it is left out and counted as "mask_without_pixels".

    Raises ShardError for an RLE that does not fit its image.
    """
    classes = ClassNumbering(first=1)
    image_ids, mask_ids = _Numbers(0), _Numbers(1)  # COCO's evaluation takes a mask's id 0 for "no match"
    folder.out.mkdir(parents=True, exist_ok=True)
    # Two lists grow at once, and a JSON holds them one after the other.
    with atomic_write(folder.out / "instances.json") as stream, tempfile.TemporaryFile(dir=folder.out) as later:
        images, annotations = _ListFile(stream), _ListFile(later)
        stream.write(b'{"images":[')
        for sample in samples:
            record = sample.record
            name = folder.add_image(record, sample.jpeg)
            image_id = image_ids.take(record.image_id)
            counts.update(["image_id_changed"] if image_id != record.image_id else [])
            images.add({"id": image_id, "width": record.width, "height": record.height, "file_name": f"{name}.jpg"})
            for mask in record.masks:
                place = f"{sample.shard}, {record.key}, mask {mask.id}"
                rle = parse_rle(mask.segmentation, height=record.height, width=record.width, place=place)
                segmentation = mask.segmentation if form == "rle" else _polygons(rle, counts)
                if not segmentation:
                    continue
                mask_id = mask_ids.take(mask.id)
                counts.update(["mask_id_changed"] if mask_id != mask.id else [])
                category = classes.take(mask.name, place=place)
                annotations.add(_annotation(mask, mask_id, image_id, category) | {"segmentation": segmentation})
        later.seek(0)
        stream.write(b'],\n"annotations":[')
        shutil.copyfileobj(later, stream)
        stream.write(b'],\n"categories":[')
        categories = _ListFile(stream)
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
    """One outline, x, y, x, y, ...; none of a mask without a pixel."""
    height, width = rle["size"]
    rings = mask_to_rings(decode_rle(rle, height=height, width=width))
    counts.update(["mask_without_pixels"] if not rings else ["mask_with_bridges"] if len(rings) > 1 else [])
    return [join_rings(rings).ravel().tolist()] if rings else []
