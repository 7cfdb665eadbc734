"""SA-1B as Meta gives it out, and folders in its form, to shards that a trainer can read in one pass.

The tars are no clean webdatasets: members stand in any order, pictures apart from their JSON or in another tar, and some are
gzip under the name .tar. So each is indexed first, and a pair is read when the places of both its halves are known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, check_key
from sam_train.shards.importers.file_pairing import decode_annotated_image
from sam_train.shards.importers.mask_records import parse_rle
from sam_train.shards.importers.source_tars import SourceMember, SourceTars, loose_file
from sam_train.shards.tar_members import split_member_name


def import_sa1b(
    source: Path, *, unpaired: Literal["error", "leave_out"] = "error", counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Pairs `KEY.jpg` and `KEY.json` of a tar, or of a folder of tars, of loose files or both, to records and JPEG bytes.

    Keys, ids, scores, boxes and runs stay as the JSON has them, integers integers. Pictures keep their stored pixels: an EXIF
    orientation is dropped, because the masks count in stored pixels. Folders are searched to the bottom; members and files
    that are neither .jpg nor .json (licences, lists) are not looked at. The order is that of the files' names, in a tar that
    of its members, a pair standing where its second half does. Memory holds one pair and the places of the halves that wait;
    a tar that is gzip is unpacked to a temporary file (TMPDIR) while it is read.

    Raises ShardError, naming the file, for a torn tar, a name that leads out of the folder or can be no key, a key given
    twice, JSON that is not SA-1B's, a picture that cannot be read or is of another size than the JSON says, masks that do not
    fit it, and at the end halves without the other: --unpaired leave_out counts these as "unpaired_jpg", "unpaired_json".
    """
    counts = Counter() if counts is None else counts
    waiting: dict[str, dict[str, SourceMember]] = {}
    done: set[str] = set()
    with closing(SourceTars()) as tars:
        for place in _places(source, tars):
            key, extension = split_member_name(place.name)
            if key is None or extension is None:
                continue
            check_key(key, shard=str(place.file))
            halves = waiting.setdefault(key, {})
            if key in done or extension in halves:
                raise ShardError(f"{place} was there before: two pictures cannot have one name", key=key)
            halves[extension] = place
            if len(halves) == 2:
                done.add(key)
                yield _sample(key, waiting.pop(key))
    if not done and not waiting:
        raise ShardError(f"nothing of SA-1B in {source}: expected .tar files, or KEY.jpg and KEY.json")
    if waiting and unpaired == "error":
        raise ShardError(_without_other(waiting))
    counts.update(f"unpaired_{extension}" for halves in waiting.values() for extension in halves)


def _without_other(waiting: dict[str, dict[str, SourceMember]]) -> str:
    ((extension, place),) = next(iter(waiting.values())).items()
    wanted = "json" if extension == "jpg" else "jpg"
    more = f" and {len(waiting) - 1} more lack their other half" if len(waiting) > 1 else ""
    return f"{place} has no .{wanted}{more}; '--unpaired leave_out' goes on without them"


def _places(source: Path, tars: SourceTars) -> Iterator[SourceMember]:
    if source.is_file():
        yield from tars.members(source)
        return
    if not source.is_dir():
        raise ShardError(f"no such folder or tar: {source}")
    for path in sorted(source.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(source).parts) or not path.is_file():
            continue
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            yield from tars.members(path)
        else:
            yield loose_file(path)


def _sample(key: str, halves: dict[str, SourceMember]) -> tuple[ImageRecord, bytes]:
    document, jpeg = halves["json"], halves["jpg"]
    data = document.read()
    record = ImageRecord.from_json(data, key=key, shard=str(document.file))
    _check_document(record, data, str(document))
    picture = decode_annotated_image(jpeg.read(), width=record.width, height=record.height, name=str(jpeg), key=key)
    return record, picture.jpeg


def _check_document(record: ImageRecord, document: bytes, place: str) -> None:
    name = json.loads(document)["image"]["file_name"]
    if name != f"{record.key}.jpg":
        raise ShardError(f"{place} is of the picture {name[:200]!r}, expected '{record.key}.jpg'")
    for index, mask in enumerate(record.masks):
        parse_rle(mask.segmentation, height=record.height, width=record.width, place=f"{place}, annotations[{index}]")
