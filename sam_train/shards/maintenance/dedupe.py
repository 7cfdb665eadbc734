"""`sam-data dedupe SHARDS...`: pictures that are there twice, or in a set that they should not be in."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_train.errors import ConfigError, ShardError
from sam_train.files import atomic_write_bytes, file_sha256
from sam_train.records import ImageRecord
from sam_train.shards.maintenance.duplicate_groups import (
    DEFAULT_THRESHOLD,
    MAX_THRESHOLD,
    NUM_BITS,
    DuplicateGroups,
    hamming_distances,
)
from sam_train.shards.maintenance.parallel import add_workers
from sam_train.shards.maintenance.perceptual_hash import ImageLocation, hash_images
from sam_train.shards.maintenance.repair import check_output_folder
from sam_train.shards.manifest import Manifest, load_manifest, manifest_path
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.writer import write_shard

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A picture and the one that stands for it, `distance` bits away. `leak`: that one is of the other set."""

    place: ImageLocation
    kept: ImageLocation
    distance: int
    leak: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport:
    """What a search over `num_images` pictures found."""

    duplicates: list[Duplicate]
    num_images: int
    unreadable: list[ImageLocation]


def add_dedupe(commands: Commands) -> None:
    """The command and its options."""
    about = "find pictures that are there twice, resized or recompressed"
    after = "Exit code 1 when any is found, unless --out takes them away; 0 when none is."
    parser = commands.add_parser("dedupe", help=about, description=about, epilog=after)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument("--against", nargs="+", metavar="SHARDS", help="another set, of which none may be in SHARDS: validation")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write SHARDS there without what was found")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the groups there")
    add_threshold(parser)
    add_workers(parser)
    parser.set_defaults(run=run_dedupe)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """The switch `--threshold`."""
    about = f"bits of {NUM_BITS} by which one picture may differ, 0 to {MAX_THRESHOLD} (default {DEFAULT_THRESHOLD})"
    parser.add_argument("--threshold", type=int, default=DEFAULT_THRESHOLD, metavar="BITS", help=about)


def check_threshold(threshold: int) -> None:
    """Raise ConfigError for one that the search does not take."""
    if not 0 <= threshold <= MAX_THRESHOLD:
        raise ConfigError(f"--threshold is 0 to {MAX_THRESHOLD} bits, got {threshold}")


def run_dedupe(arguments: argparse.Namespace) -> None:
    """Search, print, write what was asked for; SystemExit(1) as the help says. Raises ConfigError, ShardError."""
    check_threshold(arguments.threshold)
    shards = expand_shards(arguments.shards)
    against = expand_shards(arguments.against) if arguments.against else []
    if twice := {path.resolve() for path in shards} & {path.resolve() for path in against}:
        raise ConfigError(f"{min(twice)} is in SHARDS and in --against: a set is not held against itself")
    if arguments.out:
        check_output_folder(shards, arguments.out)
    found = find_duplicates(shards, against, threshold=arguments.threshold, workers=arguments.workers)
    if arguments.json:
        document = as_document(found, arguments.threshold)
        atomic_write_bytes(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    leaks = [item for item in found.duplicates if item.leak]
    for item in leaks[:20] + [item for item in found.duplicates if not item.leak][:20]:
        what = "is also in the other set" if item.leak else "is there twice"
        print(f"{item.place.shard} {item.place.key} {what}: {item.kept.shard} {item.kept.key}, {item.distance} bits apart")
    if found.unreadable:
        print(f"{len(found.unreadable)} pictures do not decode and were compared with none: see sam-data validate")
    inside = len(found.duplicates) - len(leaks)
    print(f"{found.num_images} pictures: {inside} duplicates" + (f", {len(leaks)} in the other set" if against else ""))
    if arguments.out:
        write_deduplicated(shards, found.duplicates, arguments.out, arguments.threshold)
    elif found.duplicates:
        raise SystemExit(1)


def find_duplicates(shards: Sequence[Path], against: Sequence[Path], *, threshold: int, workers: int = 1) -> DuplicateReport:
    """Pictures of `shards` that are near one before them, or one of `against` (all of which count as before them).

    Of a chain of pictures each near the next only, every second stays. Raises ShardError for a damaged shard.
    """
    prints = hash_images([*against, *shards], workers=workers)
    others = set(against)
    num_against = sum(place.shard in others for place in prints.places)
    near = DuplicateGroups.from_fingerprints(prints.fingerprints, threshold)
    representatives = near.representatives(num_against)
    duplicates = [
        Duplicate(
            place=prints.places[index],
            kept=prints.places[leader],
            distance=int(hamming_distances(near.fingerprints[index], near.fingerprints[leader])),
            leak=leader < num_against,
        )
        for index, leader in enumerate(representatives.tolist())
        if leader != index
    ]
    return DuplicateReport(duplicates=duplicates, num_images=len(prints.places) - num_against, unreadable=prints.unreadable)


def as_document(found: DuplicateReport, threshold: int) -> dict[str, Any]:
    """For JSON: the pictures by the one that stands for them."""
    groups: dict[ImageLocation, dict[str, Any]] = {}
    for item in found.duplicates:
        group = groups.setdefault(item.kept, {"kept": _as_dict(item.kept), "leak": item.leak, "duplicates": []})
        group["duplicates"].append({**_as_dict(item.place), "distance": item.distance})
    return {
        "threshold": threshold,
        "num_images": found.num_images,
        "num_duplicates": sum(not item.leak for item in found.duplicates),
        "num_leaks": sum(item.leak for item in found.duplicates),
        "groups": list(groups.values()),
        "unreadable": [_as_dict(place) for place in found.unreadable],
    }


def write_deduplicated(shards: Sequence[Path], duplicates: Sequence[Duplicate], out: Path, threshold: int) -> None:
    """Each shard again in `out`, without the duplicates, which stand in its manifest's `skipped`. Raises ShardError.

    Shards that are there from an earlier run with the same outcome are kept.
    """
    dropped: dict[Path, dict[str, str]] = {shard: {} for shard in shards}
    for item in duplicates:
        dropped[item.place.shard][item.place.key] = "leak" if item.leak else "duplicate"
    for shard in shards:
        manifest = _write(shard, out / shard.name, dropped[shard], threshold)
        print(f"{out / shard.name}: {len(manifest.keys)} samples, {len(dropped[shard])} left out")


def _write(shard: Path, target: Path, dropped: Mapping[str, str], threshold: int) -> Manifest:
    old = load_manifest(shard) if manifest_path(shard).is_file() else None
    provenance = {
        "stage": "dedupe",
        "threshold": threshold,
        "source_sha256": file_sha256(shard),
        "dropped_sha256": hashlib.sha256(json.dumps(dropped, sort_keys=True).encode()).hexdigest(),
        "source_provenance": old.provenance if old else {},
    }
    if manifest_path(target).is_file():
        manifest = load_manifest(target)
        if manifest.provenance != provenance:
            raise ShardError("the shard is there, but of another outcome: give an empty --out", shard=str(target))
        return manifest

    def kept() -> Iterator[tuple[ImageRecord, bytes]]:
        for sample in iterate_samples([shard]):
            if sample.record.key not in dropped:
                yield sample.record, sample.jpeg

    skipped, counts = ({**old.skipped}, {**old.counts}) if old else ({}, {})
    return write_shard(target, kept(), skipped={**skipped, **dropped}, counts=counts, provenance=provenance)


def _as_dict(place: ImageLocation) -> dict[str, str]:
    return {"shard": str(place.shard), "key": place.key}
