"""Import of SA-1B as Meta publishes it, and of folders in its format.

The published tars are not valid webdatasets: members are in any order, an image may be far from its JSON or in another tar, and
some tars are gzip files named .tar. So each tar is indexed first, and a pair is read once both members have been found.
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
from sam_train.shards.importers.source_tars import SourceMember, SourceTars
from sam_train.shards.tar_members import split_member_name


def import_sa1b(
    source: Path, *, unpaired: Literal["error", "skip"] = "error", counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import SA-1B: pairs KEY.jpg and KEY.json of a tar, or of a folder of tars, of single files or both.

    Keys, ids, scores, boxes and RLEs stay as in the JSON. Images keep their stored pixels: an EXIF orientation is removed,
    because masks refer to stored pixels. Folders are searched recursively; members and files that are neither .jpg nor .json
    (licences, lists) are ignored. Images are in the order of file names, those of a tar in the order of its members, a pair at
    the position of its second member. One pair is in memory at a time, besides the offsets of members without a partner so far;
    a gzip tar is decompressed to a temporary file (TMPDIR) while it is read.

    Args:
        source: Tar, or folder with tars or pairs KEY.jpg and KEY.json.
        unpaired: Action for a .jpg without .json or the reverse; "skip" counts them as unpaired_jpg and unpaired_json.

    Raises:
        ShardError: Names the file, for a truncated or corrupt tar, a name that leads out of the folder or is not a valid key, a
            duplicate key, JSON that is not SA-1B's, an image that cannot be read or has another size than the JSON says, masks
            that do not fit it, and files without a partner unless `unpaired` is "skip".
    """
    counts = Counter() if counts is None else counts
    waiting: dict[str, dict[str, SourceMember]] = {}
    done: set[str] = set()
    with closing(SourceTars()) as tars:
        for member in _members(source, tars):
            key, extension = split_member_name(member.name)
            if key is None or extension is None:
                continue
            check_key(key, shard=str(member.file))
            pair = waiting.setdefault(key, {})
            if key in done or extension in pair:
                raise ShardError(f"{member} is a duplicate: every image needs its own name", key=key)
            pair[extension] = member
            if len(pair) == 2:
                done.add(key)
                yield _sample(key, waiting.pop(key))
    if not done and not waiting:
        raise ShardError(f"no SA-1B files in {source}: expected .tar files, or KEY.jpg and KEY.json")
    if waiting and unpaired == "error":
        raise ShardError(_unpaired_message(waiting))
    counts.update(f"unpaired_{extension}" for pair in waiting.values() for extension in pair)


def _unpaired_message(waiting: dict[str, dict[str, SourceMember]]) -> str:
    ((extension, member),) = next(iter(waiting.values())).items()
    missing = "json" if extension == "jpg" else "jpg"
    more = f", and {len(waiting) - 1} more files have no partner" if len(waiting) > 1 else ""
    return f"{member} has no .{missing}{more}; '--unpaired skip' skips them"


def _members(source: Path, tars: SourceTars) -> Iterator[SourceMember]:
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
            yield SourceMember.from_file(path)


def _sample(key: str, pair: dict[str, SourceMember]) -> tuple[ImageRecord, bytes]:
    document, jpeg = pair["json"], pair["jpg"]
    data = document.read()
    record = ImageRecord.from_json(data, key=key, shard=str(document.file))
    _check_document(record, data, str(document))
    image = decode_annotated_image(jpeg.read(), width=record.width, height=record.height, name=str(jpeg), key=key)
    return record, image.jpeg


def _check_document(record: ImageRecord, document: bytes, place: str) -> None:
    name = json.loads(document)["image"]["file_name"]
    if name != f"{record.key}.jpg":
        raise ShardError(f"{place} is for the image {name[:200]!r}, expected '{record.key}.jpg'")
    for index, mask in enumerate(record.masks):
        parse_rle(mask.segmentation, height=record.height, width=record.width, place=f"{place}, annotations[{index}]")
