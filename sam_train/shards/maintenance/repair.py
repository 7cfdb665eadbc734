"""`sam-data repair SHARDS... --out DIR`: new shards of what can be kept of broken ones."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sam_train.errors import ConfigError, ShardError, SkipSampleError
from sam_train.files import file_sha256
from sam_train.records import KEY_PATTERN, ImageRecord
from sam_train.shards.index import index_shard
from sam_train.shards.keys import image_id_from_path
from sam_train.shards.maintenance.audit import copy_audit
from sam_train.shards.maintenance.findings import printable
from sam_train.shards.maintenance.parallel import Advance, map_shards
from sam_train.shards.maintenance.repair_sample import repair_sample
from sam_train.shards.maintenance.tar_recovery import read_span, scan_tar
from sam_train.shards.maintenance.validate import MAX_MEMBER_BYTES
from sam_train.shards.manifest import Manifest, load_manifest, manifest_path
from sam_train.shards.reader import expand_shards
from sam_train.shards.take_down import TAKEN_DOWN, TakeDownList, read_take_down_list
from sam_train.shards.tar_members import ByteRange, open_local_shard
from sam_train.shards.writer import write_shard

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


def add_repair(commands: Commands) -> None:
    """The command and its options."""
    about = "write new shards of what can be kept of broken ones; what is dropped is counted in their manifests"
    parser = commands.add_parser("repair", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new shards, not that of the old")
    parser.add_argument("--drop-ids", type=Path, metavar="FILE", help="text file of image ids or keys, one a line, to leave out")
    parser.set_defaults(run=run_repair)


def run_repair(arguments: argparse.Namespace) -> None:
    """Repair what the parsed command names, and print what became of each shard. Raises ConfigError, ShardError."""
    shards = expand_shards(arguments.shards)
    check_output_folder(shards, arguments.out)
    drop, taken_down = read_take_down_list(arguments.drop_ids) if arguments.drop_ids else TakeDownList(), 0
    repairer = Repairer(arguments.out, drop)
    for shard, manifest in map_shards(repairer.repair, shards, workers=1, what="repairing"):
        told = [f"{shard.name}: {len(manifest.keys)} samples, {manifest.num_masks} masks"]
        told += [f"{count} dropped: {reason}" for reason, count in Counter(manifest.skipped.values()).items()]
        told += [f"{name.removeprefix(_PREFIX)} {count:g}" for name, count in manifest.counts.items() if name.startswith(_PREFIX)]
        print("; ".join(told))
        taken_down += list(manifest.skipped.values()).count(TAKEN_DOWN)
    if drop.sha256:
        print(f"images taken down: {taken_down}; {arguments.drop_ids} names {len(drop.keys)}")


def check_output_folder(shards: Sequence[Path], out: Path) -> None:
    """Raise ConfigError when a shard of `out` would be one of `shards`, or two of them would get one name."""
    names: dict[str, Path] = {}
    for shard in shards:
        if out.resolve() == shard.resolve().parent or ((out / shard.name).exists() and (out / shard.name).samefile(shard)):
            raise ConfigError(f"--out {out} is where {shard} lies: shards are never changed in place, name another folder")
        if shard.name in names:
            raise ConfigError(f"{names[shard.name]} and {shard} have one name: take them in two runs, to two folders")
        names[shard.name] = shard


_PREFIX = "repair_"


@dataclass(slots=True)
class Repairer:
    """Writes shard after shard to `out`; a key is written once, whichever shard has it first."""

    out: Path
    drop: TakeDownList = field(default_factory=TakeDownList)
    keys: set[str] = field(default_factory=set)
    image_ids: set[int] = field(default_factory=set)

    def repair(self, shard: Path, advance: Advance) -> Manifest:
        """Write the shard of this name to `out`, if it is not there from an earlier run.

        Samples that are left out stand in the manifest's `skipped` with their reason, what was mended in its `counts` as
        repair_*; what the old manifest says in both, where it can be read, is kept, and what privacy/ says of pictures that
        stay. Raises ShardError when a shard of another source is in the place.
        """
        target, old = self.out / shard.name, _old_manifest(shard)
        provenance: dict[str, Any] = {"stage": "repair", "source": shard.name, "source_sha256": file_sha256(shard)}
        provenance["source_provenance"] = old.provenance if old else {}
        if self.drop.sha256:
            provenance["drop_ids_sha256"] = self.drop.sha256
        if manifest_path(target).is_file():
            advance(shard.stat().st_size)
            return self._done(target, provenance)
        skipped = {**old.skipped} if old else {}
        counts: dict[str, float] = {**old.counts} if old else {}
        samples = self._samples(shard, advance, skipped, counts, old.keys if old else [])
        return write_shard(target, samples, skipped=skipped, counts=counts, provenance=provenance)

    def _done(self, target: Path, provenance: dict[str, Any]) -> Manifest:
        manifest = load_manifest(target)
        if manifest.provenance != provenance:
            raise ShardError("the shard is there, but of another source or list: give an empty --out", shard=str(target))
        for entry in index_shard(target):
            self.keys.add(entry.key)
            self.image_ids.add(entry.image_id)
        return manifest

    def _samples(
        self, shard: Path, advance: Advance, skipped: dict[str, str], counts: dict[str, float], expected: Sequence[str]
    ) -> Iterator[tuple[ImageRecord, bytes]]:
        """What can be kept, the rest into `skipped` and `counts`; then the audit of what was covered in it."""
        scanned, position, kept = scan_tar(shard), 0, dict[str, int]()
        done = Counter(tears=len(scanned.damaged_regions), pairs_joined=len(scanned.non_adjacent_keys()))
        skipped.update({key: "lost" for key in expected if key not in scanned.spans})
        with open_local_shard(shard) as stream:
            for key, places in scanned.spans.items():
                try:
                    record, jpeg = self._sample(stream, key, places, done)
                    kept[key] = record.image_id
                    yield record, jpeg
                except SkipSampleError as error:
                    skipped[printable(key)] = error.reason
                end = max(span.offset + span.length for spans in places.values() for span in spans)
                advance(max(end - position, 0))
                position = max(end, position)
        done["audit_lines_dropped"] += copy_audit(shard, self.out / shard.name, kept)
        counts.update({f"{_PREFIX}{name}": float(count) for name, count in sorted(done.items()) if count})
        advance(shard.stat().st_size - position)

    def _sample(
        self, stream: BinaryIO, key: str, places: dict[str, list[ByteRange]], done: Counter[str]
    ) -> tuple[ImageRecord, bytes]:
        """Raises SkipSampleError."""
        if not KEY_PATTERN.fullmatch(key):
            raise SkipSampleError("bad_key")
        for extension in ("jpg", "json"):
            if extension not in places:
                raise SkipSampleError(f"missing_{extension}")
        if any(span.length > MAX_MEMBER_BYTES for spans in places.values() for span in spans):
            raise SkipSampleError("too_large")
        if key in self.keys:
            raise SkipSampleError("duplicate_key")
        # The last of two members with one name is what unpacking would leave.
        jpegs, documents = ((read_span(stream, span) for span in reversed(places[kind])) for kind in ("jpg", "json"))
        mended = repair_sample(key, jpegs=jpegs, documents=documents)
        if self.drop.contains(key=key, image_id=mended.record.image_id):
            raise SkipSampleError(TAKEN_DOWN)
        record = self._with_image_id(mended.record, done)
        done += mended.counts
        done["members_dropped_duplicate"] += sum(len(spans) - 1 for spans in places.values())
        self.keys.add(key)
        self.image_ids.add(record.image_id)
        return record, mended.jpeg

    def _with_image_id(self, record: ImageRecord, done: Counter[str]) -> ImageRecord:
        if record.image_id not in self.image_ids:
            return record
        image_id = image_id_from_path(record.key)
        if image_id in self.image_ids:
            raise SkipSampleError("duplicate_image_id")
        done["image_id_renewed"] += 1
        return replace(record, image_id=image_id)


def _old_manifest(shard: Path) -> Manifest | None:
    """None where none lies beside the shard, or one that cannot be read: `validate` says which."""
    try:
        return load_manifest(shard)
    except ShardError:
        return None
