"""Shards with every known kind of corruption, for the tests of validation and repair."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Members = list[tuple[str, bytes]]
EXIF = b"\xff\xe1\x00\x10Exif\0\0MM\0*\0\0\0\x08"


def read_members(shard: Path) -> Members:
    """Return names and bytes of the members of a tar."""
    with tarfile.open(shard) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_members(shard: Path, members: Members) -> Path:
    """Write a tar of the members without a manifest."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return shard


def edit_json(members: Members, change: Callable[[dict[str, Any]], None], at: int = 1) -> Members:
    """Change the JSON of the member with index `at`."""
    name, data = members[at]
    document = json.loads(data)
    change(document)
    return [*members[:at], (name, json.dumps(document).encode()), *members[at + 1 :]]


def _mask(**values: Any) -> Callable[[Members], Members]:
    return lambda members: edit_json(members, lambda document: document["annotations"][0].update(values))


def _image(**values: Any) -> Callable[[Members], Members]:
    return lambda members: edit_json(members, lambda document: document["image"].update(values))


def _jpeg(change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    return lambda members: [(members[0][0], change(members[0][1])), *members[1:]]


def _second_id(members: Members) -> Members:
    return edit_json(members, lambda document: document["annotations"][1].update(id=document["annotations"][0]["id"]))


def _other_size(members: Members) -> Members:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][0]["segmentation"]["size"] = [1, 2]

    return edit_json(members, change)


def _counts(members: Members) -> Members:
    return edit_json(members, lambda document: document["annotations"][0]["segmentation"].update(counts="0~"))


def _unknown(members: Members) -> Members:
    return edit_json(members, lambda document: document["annotations"][0].update(category=3))


CORRUPTIONS: dict[str, tuple[Callable[[Members], Members], set[str]]] = {
    "no jpg": (lambda members: members[1:], {"missing_jpg"}),
    "no json": (lambda members: members[:1] + members[2:], {"missing_json"}),
    "not adjacent": (lambda members: [members[0], *members[2:], members[1]], {"not_adjacent"}),
    "twice": (lambda members: [members[0], *members], {"duplicate_member"}),
    "bad key": (lambda members: [("a b.jpg", members[0][1]), ("a b.json", members[1][1]), *members[2:]], {"bad_key"}),
    "jpeg cut": (_jpeg(lambda jpeg: jpeg[: len(jpeg) // 2]), {"undecodable_jpeg"}),
    "jpeg is none": (_jpeg(lambda jpeg: b"GIF89a"), {"undecodable_jpeg"}),
    "exif": (_jpeg(lambda jpeg: jpeg[:2] + EXIF + jpeg[2:]), {"exif"}),
    "not json": (lambda members: [members[0], (members[1][0], b"{"), *members[2:]], {"bad_record"}),
    "unknown key": (_unknown, {"bad_record"}),
    "size": (_image(width=65), {"wrong_size", "bad_rle"}),
    "area": (_mask(area=3), {"wrong_area"}),
    "box": (_mask(bbox=[0, 0, 1, 1]), {"wrong_box"}),
    "mask id": (_second_id, {"duplicate_mask_id"}),
    "rle size": (_other_size, {"bad_rle"}),
    "rle counts": (_counts, {"bad_rle"}),
    "image id": (_image(image_id=2), {"duplicate_image_id"}),
}
"""Name -> (change to the members, expected reasons), for a shard whose first image has two masks and whose last has id 2."""
