"""Import of SA-1B as Meta publishes it, and of folders in its format.

The published tars are not valid webdatasets: members are in any order, an image may be far from its JSON or in another tar, and
some tars are gzip files named .tar. So each tar is indexed first, and a pair is read once both members have been found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import MaskRecord
from sam_train.shards.image_io import open_image_header
from sam_train.shards.importers.image_items import ImageItem
from sam_train.shards.importers.importer import check_declared_size, importer
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.sa1b_json import parse_sa1b_json
from sam_train.shards.importers.source_tars import SourceMember, SourceTars
from sam_train.shards.keys import keys_from_paths

_IMAGES = (".jpg", ".jpeg", ".png")
_TARS = (".tar", ".tar.gz", ".tgz")


@importer(default_frame="stored")
def import_sa1b(source: Path, *, report: ImportReport) -> Iterable[ImageItem]:
    """Import SA-1B: pairs KEY.jpg and KEY.json of a tar, or of a folder of tars, of single files or both.

    Keys, ids, scores, boxes and RLEs stay as in the JSON. A name with a dot or another character that a key cannot have, such as
    IMG_1.rf.0123.jpg, gets a key of its own: webdataset would cut it at the first dot. Images may be .jpeg and .png too. A JSON
    may also be a list of masks, as SAM's generator writes it, or have further keys ("key_dropped") or lack some
    ("record_completed").

    Folders are searched recursively; members and files that are neither images nor .json (licences, lists, manifests) are counted
    as "other_file". Images are in the order of file names, those of a tar in the order of its members, a pair at the position of
    its second member. One pair is in memory at a time, besides the offsets of members without a partner so far; a gzip tar is
    decompressed to a temporary file (TMPDIR) while it is read. An image without JSON is counted as "label_missing", a JSON
    without image as "image_missing", with --missing leave_out.

    Args:
        source: Tar, or folder with tars or pairs KEY.jpg and KEY.json.

    Raises:
        ShardError: Names the file, for a truncated or corrupt tar, a name that leads out of the folder, a duplicate key, JSON
            that is not SA-1B's, an image that cannot be read or has another size than the JSON says, masks that do not fit it,
            and files without a partner.
    """
    return _Pairs(source, report)


class _Pairs:
    """Items of a source. Only the first iteration reports: a later one looks for images that tell the frame of annotations."""

    def __init__(self, source: Path, report: ImportReport) -> None:
        self._source, self._report = source, report
        self._is_first = True

    def __iter__(self) -> Iterator[ImageItem]:
        report = self._report if self._is_first else ImportReport(bad="leave_out", missing="leave_out")
        self._is_first = False
        with closing(SourceTars()) as tars:
            yield from _items(self._source, tars, report)


def _items(source: Path, tars: SourceTars, report: ImportReport) -> Iterator[ImageItem]:
    waiting: dict[str, dict[str, SourceMember]] = {}
    done: set[str] = set()
    for member in _members(source, tars):
        name = PurePosixPath(member.name).name
        stem, dot, extension = name.rpartition(".")
        kind = "json" if extension.lower() == "json" else "image" if dot + extension.lower() in _IMAGES else ""
        if not kind or not stem or stem.startswith(".") or stem.endswith(".manifest"):
            report.counts["other_file"] += 1
            continue
        pair = waiting.setdefault(stem, {})
        with report.entry("image", str(member)):
            if stem in done or kind in pair:
                waiting.pop(stem) if stem in done else None
                raise ShardError(f"{member} is a duplicate: every image needs its own name", key=stem)
            pair[kind] = member
            if len(pair) == 2:
                done.add(stem)
                yield _item(stem, waiting.pop(stem), report)
    if not done and not waiting:
        raise ShardError(f"no SA-1B files in {source}: expected .tar files, or KEY.jpg and KEY.json")
    for number, pair in enumerate(waiting.values()):
        ((kind, member),) = pair.items()
        more = f", and {len(waiting) - 1} more files have no partner" if len(waiting) > 1 and not number else ""
        missing, reason = (".json", "label_missing") if kind == "image" else ("image (.jpg, .jpeg, .png)", "image_missing")
        report.absent(reason, str(member), f"{member} has no {missing}{more}")


def _members(source: Path, tars: SourceTars) -> Iterator[SourceMember]:
    if source.is_file():
        yield from tars.members(source)
        return
    if not source.is_dir():
        raise ShardError(f"no such folder or tar: {source}")
    for path in sorted(source.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(source).parts) or not path.is_file():
            continue
        if path.name.lower().endswith(_TARS):
            yield from tars.members(path)
        else:
            yield SourceMember.from_file(path, source)


def _item(stem: str, pair: dict[str, SourceMember], report: ImportReport) -> ImageItem:
    image, document = pair["image"], pair["json"]
    name = PurePosixPath(image.name).name
    (key,) = keys_from_paths([name])
    record = parse_sa1b_json(
        document.read(), file_name=name, key=key, size=_stored_size(image), place=str(document), report=report
    )

    def masks(height: int, width: int) -> list[MaskRecord]:
        check_declared_size(str(image), (record.width, record.height), height=height, width=width)
        return record.masks

    return ImageItem(
        name=image.name,
        file=image,
        masks=masks,
        declared_size=lambda: (record.width, record.height),
        image_id=record.image_id,
        key=key,
    )


def _stored_size(image: SourceMember) -> tuple[int, int] | None:
    try:
        width, height = open_image_header(image.read(), name=str(image)).size
    except SkipSampleError:
        return None  # decoding the image reports it
    return width, height
