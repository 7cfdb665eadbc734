"""`sam-data dedupe SHARDS...`: images that occur twice in a data set, or that are also in another one."""

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
from sam_train.shards.manifest import Manifest, load_manifest, manifest_path, read_categories
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.writer import write_shard

if TYPE_CHECKING:
    from sam_train.shards.options import Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """An image and the image that is kept in its place, `distance` hash bits away. `leak`: the latter is of the other set."""

    location: ImageLocation
    kept: ImageLocation
    distance: int
    leak: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport:
    """Result of a search over `num_images` images. Images in `unreadable` do not decode and were not compared."""

    duplicates: list[Duplicate]
    num_images: int
    unreadable: list[ImageLocation]


def add_dedupe(commands: Commands) -> None:
    """Add the command `dedupe` and its options."""
    about = "Find images that occur twice, also resized or recompressed."
    after = "The exit code is 1 if any is found and --out is not given, otherwise 0."
    parser = commands.add_parser("dedupe", help=about, description=about, epilog=after)
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges or folders")
    parser.add_argument(
        "--against", nargs="+", metavar="SHARDS", help="another set, such as validation, whose images must not be in SHARDS"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write SHARDS there without the duplicates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the groups there")
    add_threshold(parser)
    add_workers(parser)
    parser.set_defaults(run=run_dedupe)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add the option `--threshold`."""
    about = f"hash bits of {NUM_BITS} that may differ between duplicates, 0 to {MAX_THRESHOLD} (default {DEFAULT_THRESHOLD})"
    parser.add_argument("--threshold", type=int, default=DEFAULT_THRESHOLD, metavar="BITS", help=about)


def check_threshold(threshold: int) -> None:
    """Raise ConfigError unless the search supports `threshold`."""
    if not 0 <= threshold <= MAX_THRESHOLD:
        raise ConfigError(f"--threshold is {threshold}, expected 0 to {MAX_THRESHOLD} bits")


def run_dedupe(arguments: argparse.Namespace) -> None:
    """Search for duplicates, print them, and write the requested files.

    Raises SystemExit(1) as the help says, ConfigError for invalid options, and ShardError for a damaged shard.
    """
    check_threshold(arguments.threshold)
    shards = expand_shards(arguments.shards)
    against = expand_shards(arguments.against) if arguments.against else []
    if shared := {path.resolve() for path in shards} & {path.resolve() for path in against}:
        raise ConfigError(f"{min(shared)} is in SHARDS and in --against: give two different sets")
    if arguments.out:
        check_output_folder(shards, arguments.out)
    found = find_duplicates(shards, against, threshold=arguments.threshold, workers=arguments.workers)
    if arguments.json:
        document = as_document(found, arguments.threshold)
        atomic_write_bytes(arguments.json, (json.dumps(document, indent=1) + "\n").encode())
    leaks = [item for item in found.duplicates if item.leak]
    for item in leaks[:20] + [item for item in found.duplicates if not item.leak][:20]:
        problem = "is also in the other set" if item.leak else "is a duplicate"
        print(
            f"{item.location.shard} {item.location.key} {problem}: {item.kept.shard} {item.kept.key}, {item.distance} bits apart"
        )
    if found.unreadable:
        print(f"{len(found.unreadable)} images do not decode and were not compared: run sam-data validate")
    inside = len(found.duplicates) - len(leaks)
    print(f"{found.num_images} images: {inside} duplicates" + (f", {len(leaks)} in the other set" if against else ""))
    if arguments.out:
        write_deduplicated(shards, found.duplicates, arguments.out, arguments.threshold)
    elif found.duplicates:
        raise SystemExit(1)


def find_duplicates(shards: Sequence[Path], against: Sequence[Path], *, threshold: int, workers: int = 1) -> DuplicateReport:
    """Find images of `shards` that are close to an earlier one; all images of `against` count as earlier.

    In a chain of images in which only neighbours are close, every second one is kept. Raises ShardError for a damaged shard.
    """
    hashes = hash_images([*against, *shards], workers=workers)
    others = set(against)
    num_against = sum(location.shard in others for location in hashes.locations)
    groups = DuplicateGroups.from_fingerprints(hashes.fingerprints, threshold)
    representatives = groups.representatives(num_against)
    duplicates = [
        Duplicate(
            location=hashes.locations[index],
            kept=hashes.locations[representative],
            distance=int(hamming_distances(groups.fingerprints[index], groups.fingerprints[representative])),
            leak=representative < num_against,
        )
        for index, representative in enumerate(representatives.tolist())
        if representative != index
    ]
    return DuplicateReport(duplicates=duplicates, num_images=len(hashes.locations) - num_against, unreadable=hashes.unreadable)


def as_document(found: DuplicateReport, threshold: int) -> dict[str, Any]:
    """Return the report as a JSON document: duplicates grouped by the image that is kept."""
    groups: dict[ImageLocation, dict[str, Any]] = {}
    for item in found.duplicates:
        group = groups.setdefault(item.kept, {"kept": _as_dict(item.kept), "leak": item.leak, "duplicates": []})
        group["duplicates"].append({**_as_dict(item.location), "distance": item.distance})
    return {
        "threshold": threshold,
        "num_images": found.num_images,
        "num_duplicates": sum(not item.leak for item in found.duplicates),
        "num_leaks": sum(item.leak for item in found.duplicates),
        "groups": list(groups.values()),
        "unreadable": [_as_dict(location) for location in found.unreadable],
    }


def write_deduplicated(shards: Sequence[Path], duplicates: Sequence[Duplicate], out: Path, threshold: int) -> None:
    """Write each shard to `out` without the duplicates, which are listed in its manifest's `skipped`.

    Shards of an earlier run with the same result are kept. Raises ShardError if one has another result.
    """
    dropped: dict[Path, dict[str, str]] = {shard: {} for shard in shards}
    for item in duplicates:
        dropped[item.location.shard][item.location.key] = "leak" if item.leak else "duplicate"
    for shard in shards:
        manifest = _write(shard, out / shard.name, dropped[shard], threshold)
        print(f"{out / shard.name}: {len(manifest.keys)} samples, {len(dropped[shard])} dropped")


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
            raise ShardError("the shard exists, but with another result: give an empty --out", shard=str(target))
        return manifest

    def kept_samples() -> Iterator[tuple[ImageRecord, bytes]]:
        for sample in iterate_samples([shard]):
            if sample.record.key not in dropped:
                yield sample.record, sample.jpeg

    skipped, counts = ({**old.skipped}, {**old.counts}) if old else ({}, {})
    return write_shard(
        target,
        kept_samples(),
        skipped={**skipped, **dropped},
        counts=counts,
        provenance=provenance,
        categories=read_categories([shard]),
    )


def _as_dict(location: ImageLocation) -> dict[str, str]:
    return {"shard": str(location.shard), "key": location.key}
