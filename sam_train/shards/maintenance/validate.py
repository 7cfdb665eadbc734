"""`sam-data validate SHARDS...`: everything that is wrong with shards, told at once."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sam_train.errors import ShardError
from sam_train.files import atomic_write_bytes, file_sha256
from sam_train.records import check_key
from sam_train.shards.maintenance.findings import NOTES, REASONS, Finding, as_documents, by_reason, finding
from sam_train.shards.maintenance.parallel import Advance, add_workers, map_shards
from sam_train.shards.maintenance.sample_checks import check_sample
from sam_train.shards.maintenance.tar_recovery import TarScan, read_span, scan_tar
from sam_train.shards.maintenance.uniqueness import Uniqueness
from sam_train.shards.manifest import load_manifest, manifest_path
from sam_train.shards.reader import expand_shards
from sam_train.shards.tar_members import ByteRange, open_local_shard

if TYPE_CHECKING:
    from sam_train.shards.options import Commands

MAX_MEMBER_BYTES = 1 << 30
"""A JPEG or JSON of more is not read: no picture that is decoded needs it."""
_SHOWN = 20


@dataclass(slots=True, kw_only=True)
class ShardReport:
    """What was found in one shard. `keys` and `image_ids` are of its samples, in the order in which they begin."""

    keys: list[str] = field(default_factory=list)
    image_ids: list[int | None] = field(default_factory=list)
    num_masks: int = 0
    findings: list[Finding] = field(default_factory=list)


def add_validate(commands: Commands) -> None:
    """The command and its options."""
    about = "find everything that is wrong with shards; exit code 1 if anything is"
    parser = commands.add_parser("validate", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings there")
    add_workers(parser)
    parser.set_defaults(run=run_validate)


def run_validate(arguments: argparse.Namespace) -> None:
    """Validate, print a summary, write the report; ends with SystemExit(1) when anything is wrong. Raises ConfigError."""
    shards = expand_shards(arguments.shards)
    findings, num_samples, num_masks = validate(shards, workers=arguments.workers)
    wrong = [item for item in findings if item.reason in REASONS]
    notes = [item for item in findings if item.reason in NOTES]
    if arguments.json:
        document = {
            "shards": [str(shard) for shard in shards],
            "num_samples": num_samples,
            "num_masks": num_masks,
            "by_reason": by_reason(wrong),
            "findings": as_documents(wrong),
            "notes": as_documents(notes),
        }
        atomic_write_bytes(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    for item in wrong[:_SHOWN]:
        print(item)
    if len(wrong) > _SHOWN:
        print(f"... and {len(wrong) - _SHOWN} more{'' if arguments.json else ': --json FILE writes them all'}")
    for reason, count in by_reason(wrong).items():
        print(f"{count:8d}  {reason}: {REASONS[reason]}")
    for reason, count in by_reason(notes).items():
        print(f"{count:8d}  note, {reason}: {NOTES[reason]}")
    verdict = f"{len(wrong)} findings" if wrong else "nothing is wrong"
    print(f"{len(shards)} shards, {num_samples} samples, {num_masks} masks: {verdict}")
    if wrong:
        raise SystemExit(1)


def validate(shards: list[Path], *, workers: int = 1) -> tuple[list[Finding], int, int]:
    """Findings and notes of all shards, in their order, then of what is unique in none of them; samples; masks."""
    unique, findings, num_samples, num_masks = Uniqueness(), [], 0, 0
    for shard, report in map_shards(validate_shard, shards, workers=workers, what="validating"):
        findings += report.findings
        num_samples += len(report.keys)
        num_masks += report.num_masks
        unique.add(shard, report.keys, report.image_ids)
    return findings + unique.findings(), num_samples, num_masks


def validate_shard(shard: Path, advance: Advance) -> ShardReport:
    """Everything that can be said of one shard alone. A sample counts when both its members are there."""
    scanned = scan_tar(shard)
    report, position = ShardReport(keys=scanned.complete_keys(), findings=_of_members(str(shard), scanned)), 0
    with open_local_shard(shard) as stream:
        for key in report.keys:
            spans = scanned.spans[key]["jpg"][-1], scanned.spans[key]["json"][-1]
            _add_sample(report, stream, str(shard), key, spans)
            end = max(span.offset + span.length for span in spans)
            advance(max(end - position, 0))
            position = max(end, position)
    report.findings += _of_manifest(shard, scanned, report.num_masks)
    advance(max(shard.stat().st_size - position, 0))
    return report


def _add_sample(report: ShardReport, stream: BinaryIO, shard: str, key: str, spans: tuple[ByteRange, ByteRange]) -> None:
    record = None
    if (longest := max(span.length for span in spans)) > MAX_MEMBER_BYTES:
        message = f"{longest} bytes, at most {MAX_MEMBER_BYTES} are read"
        report.findings.append(finding(shard, key, "tar", "too_large", message))
    else:
        jpeg, document = (read_span(stream, span) for span in spans)
        found, record = check_sample(shard, key, jpeg=jpeg, document=document)
        report.findings += found
    report.num_masks += len(record.masks) if record else 0
    report.image_ids.append(record.image_id if record else None)


def _of_members(shard: str, scanned: TarScan) -> list[Finding]:
    found = []
    for damage in scanned.damaged_regions:
        rest = "nothing after it can be read" if damage.resumed_at is None else f"members go on at byte {damage.resumed_at}"
        found.append(finding(shard, "", "tar", "torn_tar", f"at byte {damage.offset}: {damage.message}; {rest}"))
    non_adjacent_keys = scanned.non_adjacent_keys()
    for key, places in scanned.spans.items():
        try:
            check_key(key)
        except ShardError as error:
            found.append(finding(shard, key, "tar", "bad_key", str(error)))
        for extension, spans in places.items():
            if len(spans) > 1:
                found.append(finding(shard, key, extension, "duplicate_member", f"{len(spans)} members have this name"))
        for extension in {"jpg", "json"} - places.keys():
            found.append(finding(shard, key, extension, f"missing_{extension}", f"there is no {key}.{extension}"))
        if key in non_adjacent_keys:
            found.append(finding(shard, key, "tar", "not_adjacent", "other members stand between those of this key"))
    return found


def _of_manifest(shard: Path, scanned: TarScan, num_masks: int) -> list[Finding]:
    """Each way in which the manifest does not agree with the tar."""
    name, place, keys = str(shard), manifest_path(shard), list(scanned.spans)
    if not place.is_file():
        return [finding(name, "", "manifest", "no_manifest", f"there is no {place.name}")]
    try:
        manifest = load_manifest(shard)
    except ShardError as error:
        return [finding(name, "", "manifest", "bad_manifest", str(error))]
    pairs = {
        "shard": ("manifest_name", manifest.shard, shard.name),
        "bytes": ("manifest_bytes", manifest.bytes, shard.stat().st_size),
        "sha256": ("manifest_sha256", manifest.sha256, file_sha256(shard)),
        "num_masks": ("manifest_num_masks", manifest.num_masks, num_masks),
    }
    found = [
        finding(name, "", f"manifest.{field}", reason, f"the manifest says {said!r}, the tar has {is_!r}")
        for field, (reason, said, is_) in pairs.items()
        if said != is_
    ]
    if manifest.keys != keys:
        message = _difference(manifest.keys, keys)
        found.append(finding(name, "", "manifest.keys", "manifest_keys", message))
    elif manifest.places is not None and (key := _misplaced(manifest.places, scanned)) is not None:
        message = "the manifest's places are not where the members lie: a reader that trusts them reads something else"
        found.append(finding(name, key, "manifest.places", "manifest_places", message))
    return found


def _misplaced(places: dict[str, list[int]], scanned: TarScan) -> str | None:
    """The first key whose members lie elsewhere than `places` says; None when there is none."""
    for kind, extension in (("jpeg", "jpg"), ("json", "json")):
        said = zip(places.get(f"{kind}_offset", []), places.get(f"{kind}_bytes", []), strict=False)
        for key, spans in scanned.spans.items():
            last = spans.get(extension, [ByteRange(offset=-1, length=-1)])[-1]
            if next(said, None) != (last.offset, last.length):
                return key
    return None


def _difference(said: object, keys: list[str]) -> str:
    if not isinstance(said, list) or not all(isinstance(key, str) for key in said):
        return "the manifest's keys are no list of names"
    only_said, only_there = sorted(set(said) - set(keys)), sorted(set(keys) - set(said))
    if not only_said and not only_there:
        return "the keys are the same, their order or number is not"
    parts = [("only in the manifest", only_said), ("only in the tar", only_there)]
    return "; ".join(f"{len(names)} {where} ({', '.join(names[:3])})" for where, names in parts if names)
