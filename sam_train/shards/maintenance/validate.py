"""`sam-data validate SHARDS...`: report all errors in shards."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
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
"""Largest JPEG or JSON that is read; no image of the supported size needs more."""
_SHOWN = 20


@dataclass(slots=True, kw_only=True)
class ShardReport:
    """Findings of one shard, and the `keys` and `image_ids` of its samples in the order of their first member."""

    keys: list[str] = field(default_factory=list)
    image_ids: list[int | None] = field(default_factory=list)
    num_masks: int = 0
    findings: list[Finding] = field(default_factory=list)


def add_validate(commands: Commands) -> None:
    """Add the command `validate` and its options."""
    about = "Report all errors in shards; the exit code is 1 if there is one."
    parser = commands.add_parser("validate", help=about, description=about)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders (recursive)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file")
    add_workers(parser)
    parser.set_defaults(run=run_validate)


def run_validate(arguments: argparse.Namespace) -> None:
    """Validate shards, print a summary and write the report. Raises SystemExit(1) if there are errors, and ConfigError."""
    shards = expand_shards(arguments.shards, recursive=True)
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
        print(f"... and {len(wrong) - _SHOWN} more{'' if arguments.json else ': --json FILE writes all of them'}")
    for reason, count in by_reason(wrong).items():
        print(f"{count:8d}  {reason}: {REASONS[reason]}")
    for reason, count in by_reason(notes).items():
        print(f"{count:8d}  note, {reason}: {NOTES[reason]}")
    verdict = f"{len(wrong)} findings" if wrong else "no errors"
    print(f"{len(shards)} shards, {num_samples} samples, {num_masks} masks: {verdict}")
    if wrong:
        raise SystemExit(1)


def validate(shards: list[Path], *, workers: int = 1) -> tuple[list[Finding], int, int]:
    """Return the findings and notes of all shards, then those on repeated keys and ids; the number of samples; of masks."""
    unique, findings, num_samples, num_masks = Uniqueness(), [], 0, 0
    for shard, report in map_shards(validate_shard, shards, workers=workers, what="validating"):
        findings += report.findings
        num_samples += len(report.keys)
        num_masks += report.num_masks
        unique.add(shard, report.keys, report.image_ids)
    return findings + unique.findings(), num_samples, num_masks


def validate_shard(shard: Path, advance: Advance) -> ShardReport:
    """Validate one shard. Only samples with both members are counted."""
    scanned = scan_tar(shard)
    report, position = ShardReport(keys=scanned.complete_keys(), findings=_member_findings(str(shard), scanned)), 0
    with open_local_shard(shard) as stream:
        for key in report.keys:
            spans = scanned.spans[key]["jpg"][-1], scanned.spans[key]["json"][-1]
            _add_sample(report, stream, str(shard), key, spans)
            end = max(span.offset + span.length for span in spans)
            advance(max(end - position, 0))
            position = max(end, position)
    report.findings += _manifest_findings(shard, scanned, report.num_masks)
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


def _member_findings(shard: str, scanned: TarScan) -> list[Finding]:
    found = []
    for damage in scanned.damaged_regions:
        rest = (
            "nothing after it can be read" if damage.resumed_at is None else f"the next member begins at byte {damage.resumed_at}"
        )
        found.append(finding(shard, "", "tar", "torn_tar", f"at byte {damage.offset}: {damage.message}; {rest}"))
    for name in scanned.unused:
        is_data = PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg", ".png", ".json")
        message = f"{name} is part of no sample" + (": sam-data import sa1b gives it a key without dots" if is_data else "")
        found.append(finding(shard, "", "tar", "dotted_name" if is_data else "other_member", message))
    non_adjacent = scanned.non_adjacent_keys()
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
        if key in non_adjacent:
            found.append(finding(shard, key, "tar", "not_adjacent", "other members are between those of this key"))
    return found


def _manifest_findings(shard: Path, scanned: TarScan, num_masks: int) -> list[Finding]:
    """Return a finding for each way in which the manifest differs from the tar."""
    name, path, keys = str(shard), manifest_path(shard), list(scanned.spans)
    if not path.is_file():
        return [finding(name, "", "manifest", "no_manifest", f"there is no {path.name}")]
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
        finding(name, "", f"manifest.{field}", reason, f"the manifest has {recorded!r}, the tar {actual!r}")
        for field, (reason, recorded, actual) in pairs.items()
        if recorded != actual
    ]
    if manifest.keys != keys:
        message = _difference(manifest.keys, keys)
        found.append(finding(name, "", "manifest.keys", "manifest_keys", message))
    elif manifest.places is not None and (key := _misplaced(manifest.places, scanned)) is not None:
        message = "the manifest's byte ranges are not those of the members: a reader that uses them reads wrong bytes"
        found.append(finding(name, key, "manifest.places", "manifest_places", message))
    return found


def _misplaced(places: dict[str, list[int]], scanned: TarScan) -> str | None:
    """Return the first key whose members have other byte ranges than `places`, None if there is none."""
    for kind, extension in (("jpeg", "jpg"), ("json", "json")):
        recorded = zip(places.get(f"{kind}_offset", []), places.get(f"{kind}_bytes", []), strict=False)
        for key, spans in scanned.spans.items():
            last = spans.get(extension, [ByteRange(offset=-1, length=-1)])[-1]
            if next(recorded, None) != (last.offset, last.length):
                return key
    return None


def _difference(recorded: object, keys: list[str]) -> str:
    if not isinstance(recorded, list) or not all(isinstance(key, str) for key in recorded):
        return "the manifest's keys are not a list of names"
    only_recorded, only_actual = sorted(set(recorded) - set(keys)), sorted(set(keys) - set(recorded))
    if not only_recorded and not only_actual:
        return "the keys are the same, but their order or number differs"
    parts = [("only in the manifest", only_recorded), ("only in the tar", only_actual)]
    return "; ".join(f"{len(names)} {where} ({', '.join(names[:3])})" for where, names in parts if names)
