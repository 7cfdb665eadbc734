"""More than 10,000 broken shards, records, masks and pictures: each is read or refused by name, soon, in bounded memory.

A quarter of them unless SAM_TRAIN_FUZZ=full is in the environment. Answers of servers: test_fuzz_remote.py.
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
    cut,
    flipped,
    json_mutated,
    num_cases,
    rle_mutated,
    seeded,
    spliced,
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
    """The peak of this process may not rise by what a bomb needs."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_MIB * 1024


def attempt(case: object, *steps: Callable[[], object]) -> int:
    """Take each step; how many were refused. Anything but an error of ours, and slowness, fails with the case's name."""
    refused, start = 0, time.process_time()  # a machine that does other things too is not a slow reader
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
    """No bar."""


def test_tars(tmp_path: Path) -> None:
    shard, clean = tmp_path / "a.tar", tmp_path / "clean.tar"
    write_shard(clean, SAMPLES)
    whole = clean.read_bytes()
    refused = 0
    for case in range(NUM_TARS):
        dice = seeded(case)
        shard.write_bytes(dice.choice(TAR_MUTATIONS)(whole, dice))
        refused += attempt(
            case,
            lambda: [read_sample(entry) for entry in index_shard(shard)],
            lambda: list(iterate_samples([shard])),
            lambda: validate_shard(shard, nothing),
            lambda: measure_shard(shard, nothing),
        )
    assert NUM_TARS / 2 < refused < 2 * NUM_TARS, "the strict readers refuse most, the others read on"


def test_records(tmp_path: Path) -> None:
    refused = 0
    for case in range(NUM_RECORDS):
        dice = seeded(case)
        document, (was, jpeg) = json_mutated(DOCUMENTS[case % 3], dice), SAMPLES[case % 3]

        def read(document: bytes = document, key: str = was.key) -> None:
            record = ImageRecord.from_json(document, key=key)
            assert ImageRecord.from_json(record.to_json(), key=key) == record
            for mask in record.masks:
                decode_rle(mask.segmentation, height=record.height, width=record.width)

        mend = lambda d=document, k=was.key, j=jpeg: repair_sample(k, jpegs=[j], documents=[d])  # noqa: E731
        refused += attempt(case, read, mend)
    assert NUM_RECORDS / 2 < refused < 2 * NUM_RECORDS


def test_items_of_the_loader(tmp_path: Path) -> None:
    """Broken records and pictures in whole tars, through everything that opens a shard."""
    shard = tmp_path / "a.tar"
    for case in range(NUM_ITEMS):
        dice = seeded(case)
        members = []
        for document, (record, jpeg) in zip(DOCUMENTS, SAMPLES, strict=True):
            broken = flipped(jpeg, dice) if dice.random() < 0.5 else jpeg
            text = json_mutated(document, dice) if dice.random() < 0.5 else record.to_json()
            members += [(f"{record.key}.jpg", broken), (f"{record.key}.json", text)]
        write_members(shard, members)

        def load() -> None:
            loader = ShardDataModule(shards=str(shard), val_shards=str(shard), image_size=32, scale_jitter=(0.5, 2.0))
            for dataset in (loader.train_set, loader.val_set):
                for position in range(3):
                    attempt(case, lambda: dataset[position])  # noqa: B023

        repairer = Repairer(tmp_path / "out")
        attempt(case, load, lambda: repairer.repair(shard, nothing), lambda: measure_shard(shard, nothing))  # noqa: B023
        mended = tmp_path / "out" / shard.name
        assert validate_shard(mended, nothing).findings == [], f"case {case}: what repair writes is clean"
        manifest_path(mended).unlink()


def test_rles() -> None:
    accepted = 0
    for case in range(NUM_RLES):
        dice = seeded(case)
        rle = SAMPLES[case % 3][0].masks[0].segmentation
        size = dice.choice(([HEIGHT, WIDTH],) * 6 + ([WIDTH, HEIGHT], [-HEIGHT, -WIDTH], [0, 0], [2**20, 2**20], [2**40, 2**40]))
        broken = {"size": size, "counts": rle_mutated(rle["counts"], dice)}
        given = {"height": size[0], "width": size[1]}

        def same(broken: dict[str, Any] = broken, given: dict[str, int] = given) -> None:
            mask = decode_rle(broken, **given)
            assert rle_to_column_runs(broken, **given).area() == mask.sum()

        refused = attempt(
            case, same, lambda b=broken, g=given: rle_to_column_runs(b, **g), lambda b=broken, g=given: decode_rle(b, **g)
        )
        assert refused in (0, 3), f"case {case}: both readers take it or none"
        accepted += refused == 0
    assert accepted > 20, "some are masks still"


def test_rles_of_huge_images_are_no_bombs() -> None:
    for side in (1 << 15, 1 << 20):
        counts = coco_counts(side * side)
        attempt(side, lambda: decode_rle({"size": [side, side], "counts": counts}, height=side, width=side))  # noqa: B023


def coco_counts(pixels: int) -> str:
    """One run of background, as maskApi.c writes it."""
    letters = ""
    while True:
        code, pixels = pixels & 0x1F, pixels >> 5
        more = pixels != (-1 if code & 0x10 else 0)
        letters += chr((code | 0x20 * more) + 48)
        if not more:
            return letters


def test_jpegs() -> None:
    decoded = 0
    for case in range(NUM_JPEGS):
        dice = seeded(case)
        jpeg = dice.choice((flipped, cut, spliced))(SAMPLES[case % 3][1], dice)
        if dice.random() < 0.2 and (at := jpeg.find(b"\xff\xc0")) >= 0:  # the header claims another size
            jpeg = jpeg[: at + 5] + dice.randbytes(4) + jpeg[at + 9 :]

        def bare(jpeg: bytes = jpeg) -> None:
            try:
                assert list_metadata(strip_metadata(jpeg)) == []
            except ValueError:  # what it says it raises
                list_metadata(jpeg)

        decoded += attempt(case, lambda j=jpeg: decode_jpeg(j), bare) == 0
        attempt(case, lambda j=jpeg: fingerprint(j))
    assert 0 < decoded < NUM_JPEGS


def test_manifests(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, SAMPLES, skipped={"x": "unreadable"}, counts={"clicks": 3.0}, provenance={"stage": "import"})
    document = json.loads(manifest_path(shard).read_bytes())
    refused = 0
    for case in range(NUM_MANIFESTS):
        manifest_path(shard).write_bytes(json_mutated(document, seeded(case)))
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
def test_any_bytes(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "a.tar"
        shard.write_bytes(data)
        manifest_path(shard).write_bytes(data)
        attempt(data, lambda: index_shard(shard), lambda: validate_shard(shard, nothing), lambda: decode_jpeg(data))
    attempt(data, lambda: ImageRecord.from_json(data, key="a"))


def test_they_are_as_many_as_promised() -> None:
    assert sum(FULL.values()) >= 10_000
