"""`sam-data repair SHARDS... --out DIR`: write new shards with all samples of damaged ones that can be kept."""

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
from sam_train.shards.manifest import Manifest, load_manifest, manifest_path, read_categories, read_source_files
from sam_train.shards.reader import expand_shards
from sam_train.shards.take_down import TAKEN_DOWN, TakeDownList, read_take_down_list
from sam_train.shards.tar_members import ByteRange, open_local_shard
from sam_train.shards.writer import write_shard

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


def add_repair(commands: Commands) -> None:
    """Add the command `repair` and its options."""
    about = "Write new shards with all samples of damaged ones that can be kept; manifests count what was dropped."
    parser = commands.add_parser("repair", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new shards, not that of SHARDS")
    parser.add_argument("--drop-ids", type=Path, metavar="FILE", help="text file of image ids or keys to drop, one per line")
    parser.set_defaults(run=run_repair)


def run_repair(arguments: argparse.Namespace) -> None:
    """Repair the shards of the parsed options and print a summary of each. Raises ConfigError and ShardError."""
    shards = expand_shards(arguments.shards)
    check_output_folder(shards, arguments.out)
    drop, taken_down = read_take_down_list(arguments.drop_ids) if arguments.drop_ids else TakeDownList(), 0
    repairer = Repairer(arguments.out, drop)
    for shard, manifest in map_shards(repairer.repair, shards, workers=1, what="repairing"):
        summary = [f"{shard.name}: {len(manifest.keys)} samples, {manifest.num_masks} masks"]
        summary += [f"{count} dropped: {reason}" for reason, count in Counter(manifest.skipped.values()).items()]
        summary += [
            f"{name.removeprefix(_PREFIX)} {count:g}" for name, count in manifest.counts.items() if name.startswith(_PREFIX)
        ]
        print("; ".join(summary))
        taken_down += list(manifest.skipped.values()).count(TAKEN_DOWN)
    if drop.sha256:
        print(f"images taken down: {taken_down}; {arguments.drop_ids} names {len(drop.keys)}")


def check_output_folder(shards: Sequence[Path], out: Path) -> None:
    """Raise ConfigError if a shard in `out` would replace one of `shards`, or if two of them have the same file name."""
    names: dict[str, Path] = {}
    for shard in shards:
        if out.resolve() == shard.resolve().parent or ((out / shard.name).exists() and (out / shard.name).samefile(shard)):
            raise ConfigError(f"--out {out} is the folder of {shard}: shards are never changed in place, give another folder")
        if shard.name in names:
            raise ConfigError(f"{names[shard.name]} and {shard} have the same file name: repair them in two runs, to two folders")
        names[shard.name] = shard


_PREFIX = "repair_"


@dataclass(slots=True)
class Repairer:
    """Repairs shard after shard into `out`. A key is written once, from the first shard that has it."""

    out: Path
    drop: TakeDownList = field(default_factory=TakeDownList)
    keys: set[str] = field(default_factory=set)
    image_ids: set[int] = field(default_factory=set)

    def repair(self, shard: Path, advance: Advance) -> Manifest:
        """Write the repaired shard to `out` under its name, unless it exists from an earlier run.

        The manifest lists dropped samples with their reason in `skipped`, and counts repairs in `counts` as repair_*. Both
        keep the entries of the old manifest, if it can be read; the privacy audit is copied for the images that are kept.
        Raises ShardError if `out` has a shard of this name from another source.
        """
        target, old = self.out / shard.name, _old_manifest(shard)
        provenance: dict[str, Any] = {"stage": "repair", "source": shard.name, "source_sha256": file_sha256(shard)}
        provenance["source_provenance"] = old.provenance if old else {}
        if self.drop.sha256:
            provenance["drop_ids_sha256"] = self.drop.sha256
        if manifest_path(target).is_file():
            advance(shard.stat().st_size)
            return self._load_finished(target, provenance)
        skipped = {**old.skipped} if old else {}
        counts: dict[str, float] = {**old.counts} if old else {}
        samples = self._samples(shard, advance, skipped, counts, old.keys if old else [])
        categories = read_categories([shard]) if old else {}
        return write_shard(target, samples, skipped=skipped, counts=counts, provenance=provenance, categories=categories)

    def _load_finished(self, target: Path, provenance: dict[str, Any]) -> Manifest:
        manifest = load_manifest(target)
        if manifest.provenance != provenance:
            raise ShardError("the shard exists, but from another source or list: give an empty --out", shard=str(target))
        for entry in index_shard(target):
            self.keys.add(entry.key)
            self.image_ids.add(entry.image_id)
        return manifest

    def _samples(
        self, shard: Path, advance: Advance, skipped: dict[str, str], counts: dict[str, float], expected: Sequence[str]
    ) -> Iterator[tuple[ImageRecord, bytes]]:
        """Yield the samples that can be kept, record the others in `skipped` and `counts`, and copy the privacy audit."""
        scanned, position, kept = scan_tar(shard), 0, dict[str, int]()
        source_files = read_source_files(shard) if expected else {}
        done = Counter(tears=len(scanned.damaged_regions), pairs_joined=len(scanned.non_adjacent_keys()))
        skipped.update({key: "lost" for key in expected if key not in scanned.spans})
        with open_local_shard(shard) as stream:
            for key, places in scanned.spans.items():
                try:
                    record, jpeg = self._sample(stream, key, places, done)
                    kept[key] = record.image_id
                    yield replace(record, source_file=source_files.get(key, "")), jpeg
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
        """Return the repaired sample. Raises SkipSampleError if it cannot be kept."""
        if not KEY_PATTERN.fullmatch(key):
            raise SkipSampleError("bad_key")
        for extension in ("jpg", "json"):
            if extension not in places:
                raise SkipSampleError(f"missing_{extension}")
        if any(span.length > MAX_MEMBER_BYTES for spans in places.values() for span in spans):
            raise SkipSampleError("too_large")
        if key in self.keys:
            raise SkipSampleError("duplicate_key")
        # Of two members with the same name the last counts, as when a tar is unpacked.
        jpegs, documents = ((read_span(stream, span) for span in reversed(places[kind])) for kind in ("jpg", "json"))
        repaired = repair_sample(key, jpegs=jpegs, documents=documents)
        if self.drop.contains(key=key, image_id=repaired.record.image_id):
            raise SkipSampleError(TAKEN_DOWN)
        record = self._with_image_id(repaired.record, done)
        done += repaired.counts
        done["members_dropped_duplicate"] += sum(len(spans) - 1 for spans in places.values())
        self.keys.add(key)
        self.image_ids.add(record.image_id)
        return record, repaired.jpeg

    def _with_image_id(self, record: ImageRecord, done: Counter[str]) -> ImageRecord:
        if record.image_id not in self.image_ids:
            return record
        image_id = image_id_from_path(record.key)
        if image_id in self.image_ids:
            raise SkipSampleError("duplicate_image_id")
        done["image_id_renewed"] += 1
        return replace(record, image_id=image_id)


def _old_manifest(shard: Path) -> Manifest | None:
    """Return the manifest, None if it is missing or cannot be read; `validate` distinguishes the two."""
    try:
        return load_manifest(shard)
    except ShardError:
        return None
