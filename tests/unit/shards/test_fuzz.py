"""Fuzzing with more than 10,000 corrupt shards, records, masks and images.

Each is read or rejected by name, in bounded time and memory. A quarter of the cases run unless SAM_TRAIN_FUZZ=full is in the
environment. For responses of servers see test_fuzz_remote.py.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from corruptions import write_members
from fuzzing import (
    DOCUMENTS,
    HEIGHT,
    SAMPLES,
    TAR_MUTATIONS,
    WIDTH,
    flip_bytes,
    mutate_json,
    mutate_rle_counts,
    num_cases,
    seeded_random,
    splice_bytes,
    truncate,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards import decode_jpeg, iterate_samples, load_manifest, manifest_path, write_shard
from sam_train.shards.index import index_shard, read_sample
from sam_train.shards.jpeg import list_metadata, strip_metadata
from sam_train.shards.maintenance.duplicate_groups import fingerprint
from sam_train.shards.maintenance.repair import Repairer
from sam_train.shards.maintenance.repair_sample import repair_sample
from sam_train.shards.maintenance.rle_geometry import rle_to_column_runs
from sam_train.shards.maintenance.statistics.measure import measure_shard
from sam_train.shards.maintenance.validate import validate_shard

FULL = {"tars": 1200, "records": 3500, "items": 200, "rles": 4200, "jpegs": 1500, "manifests": 300}
NUM_TARS, NUM_RECORDS, NUM_ITEMS, NUM_RLES, NUM_JPEGS, NUM_MANIFESTS = (num_cases(in_full=number) for number in FULL.values())
MAX_SECONDS_A_CASE, MAX_MIB = 5.0, 400
EXPECTED = (ShardError, ConfigError)


@pytest.fixture(autouse=True)
def _silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Fail if the peak memory of this process rises by the size of a decompression bomb."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_MIB * 1024


def attempt(case: object, *steps: Callable[[], object]) -> int:
    """Run each step and return how many were rejected. Any other exception, or slowness, fails with the name of the case."""
    refused, start = 0, time.process_time()  # CPU time, which other load on the machine does not change
    for step in steps:
        try:
            step()
        except EXPECTED:
            refused += 1
        except Exception as error:
            pytest.fail(f"case {case}: {type(error).__name__}: {str(error)[:500]}", pytrace=True)
    assert time.process_time() - start < MAX_SECONDS_A_CASE, f"case {case}"
    return refused


def nothing(_: int) -> None:
    """Show no progress."""


def test_corrupt_tars_are_read_or_rejected(tmp_path: Path) -> None:
    shard, clean = tmp_path / "a.tar", tmp_path / "clean.tar"
    write_shard(clean, SAMPLES)
    whole = clean.read_bytes()
    refused = 0
    for case in range(NUM_TARS):
        rng = seeded_random(case)
        shard.write_bytes(rng.choice(TAR_MUTATIONS)(whole, rng))
        refused += attempt(
            case,
            lambda: [read_sample(entry) for entry in index_shard(shard)],
            lambda: list(iterate_samples([shard])),
            lambda: validate_shard(shard, nothing),
            lambda: measure_shard(shard, nothing),
        )
    assert NUM_TARS / 2 < refused < 2 * NUM_TARS, "the strict readers reject most, the tolerant ones read them"


def test_corrupt_records_are_read_or_rejected(tmp_path: Path) -> None:
    refused = 0
    for case in range(NUM_RECORDS):
        rng = seeded_random(case)
        document, (was, jpeg) = mutate_json(DOCUMENTS[case % 3], rng), SAMPLES[case % 3]

        def read(document: bytes = document, key: str = was.key) -> None:
            record = ImageRecord.from_json(document, key=key)
            assert ImageRecord.from_json(record.to_json(), key=key) == record
            for mask in record.masks:
                decode_rle(mask.segmentation, height=record.height, width=record.width)

        repair = lambda d=document, k=was.key, j=jpeg: repair_sample(k, jpegs=[j], documents=[d])  # noqa: E731
        refused += attempt(case, read, repair)
    assert NUM_RECORDS / 2 < refused < 2 * NUM_RECORDS


def test_loader_reads_or_rejects_corrupt_samples(tmp_path: Path) -> None:
    """Corrupt records and images in intact tars, through everything that opens a shard."""
    shard = tmp_path / "a.tar"
    for case in range(NUM_ITEMS):
        rng = seeded_random(case)
        members = []
        for document, (record, jpeg) in zip(DOCUMENTS, SAMPLES, strict=True):
            broken = flip_bytes(jpeg, rng) if rng.random() < 0.5 else jpeg
            text = mutate_json(document, rng) if rng.random() < 0.5 else record.to_json()
            members += [(f"{record.key}.jpg", broken), (f"{record.key}.json", text)]
        write_members(shard, members)

        def load() -> None:
            loader = ShardDataModule(shards=str(shard), val_shards=str(shard), image_size=32, scale_jitter=(0.5, 2.0))
            for dataset in (loader.train_set, loader.val_set):
                for position in range(3):
                    attempt(case, lambda: dataset[position])  # noqa: B023

        repairer = Repairer(tmp_path / "out")
        attempt(case, load, lambda: repairer.repair(shard, nothing), lambda: measure_shard(shard, nothing))  # noqa: B023
        repaired = tmp_path / "out" / shard.name
        assert validate_shard(repaired, nothing).findings == [], f"case {case}: what repair writes is clean"
        manifest_path(repaired).unlink()


def test_corrupt_rles_are_read_or_rejected() -> None:
    accepted = 0
    for case in range(NUM_RLES):
        rng = seeded_random(case)
        rle = SAMPLES[case % 3][0].masks[0].segmentation
        size = rng.choice(([HEIGHT, WIDTH],) * 6 + ([WIDTH, HEIGHT], [-HEIGHT, -WIDTH], [0, 0], [2**20, 2**20], [2**40, 2**40]))
        broken = {"size": size, "counts": mutate_rle_counts(rle["counts"], rng)}
        given = {"height": size[0], "width": size[1]}

        def same(broken: dict[str, Any] = broken, given: dict[str, int] = given) -> None:
            mask = decode_rle(broken, **given)
            assert rle_to_column_runs(broken, **given).area() == mask.sum()

        refused = attempt(
            case, same, lambda b=broken, g=given: rle_to_column_runs(b, **g), lambda b=broken, g=given: decode_rle(b, **g)
        )
        assert refused in (0, 3), f"case {case}: both readers take it or none"
        accepted += refused == 0
    assert accepted > 20, "some are still masks"


def test_rles_of_huge_images_allocate_no_memory() -> None:
    for side in (1 << 15, 1 << 20):
        counts = coco_counts(side * side)
        attempt(side, lambda: decode_rle({"size": [side, side], "counts": counts}, height=side, width=side))  # noqa: B023


def coco_counts(pixels: int) -> str:
    """Return one run of background as maskApi.c encodes it."""
    letters = ""
    while True:
        code, pixels = pixels & 0x1F, pixels >> 5
        more = pixels != (-1 if code & 0x10 else 0)
        letters += chr((code | 0x20 * more) + 48)
        if not more:
            return letters


def test_corrupt_jpegs_are_read_or_rejected() -> None:
    decoded = 0
    for case in range(NUM_JPEGS):
        rng = seeded_random(case)
        jpeg = rng.choice((flip_bytes, truncate, splice_bytes))(SAMPLES[case % 3][1], rng)
        if rng.random() < 0.2 and (at := jpeg.find(b"\xff\xc0")) >= 0:  # the header declares another size
            jpeg = jpeg[: at + 5] + rng.randbytes(4) + jpeg[at + 9 :]

        def bare(jpeg: bytes = jpeg) -> None:
            try:
                assert list_metadata(strip_metadata(jpeg)) == []
            except ValueError:  # the documented exception
                list_metadata(jpeg)

        decoded += attempt(case, lambda j=jpeg: decode_jpeg(j), bare) == 0
        attempt(case, lambda j=jpeg: fingerprint(j))
    assert 0 < decoded < NUM_JPEGS


def test_corrupt_manifests_are_read_or_rejected(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, SAMPLES, skipped={"x": "unreadable"}, counts={"clicks": 3.0}, provenance={"stage": "import"})
    document = json.loads(manifest_path(shard).read_bytes())
    refused = 0
    for case in range(NUM_MANIFESTS):
        manifest_path(shard).write_bytes(mutate_json(document, seeded_random(case)))
        refused += attempt(
            case,
            lambda: load_manifest(shard),
            lambda: [read_sample(entry) for entry in index_shard(shard)],
            lambda: list(iterate_samples([shard])),
            lambda: validate_shard(shard, nothing),
        )
    assert refused > NUM_MANIFESTS


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_random_bytes_are_rejected(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "a.tar"
        shard.write_bytes(data)
        manifest_path(shard).write_bytes(data)
        attempt(data, lambda: index_shard(shard), lambda: validate_shard(shard, nothing), lambda: decode_jpeg(data))
    attempt(data, lambda: ImageRecord.from_json(data, key="a"))


def test_number_of_cases_is_as_documented() -> None:
    assert sum(FULL.values()) >= 10_000
