"""The ledger is the sum of the manifests of finished shards, no more and no less."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import make_sample

from data_engine.ledger import Counts, Ledger, read_ledger, write_ledger
from sam_train.shards import manifest_path, write_shard


def test_counts_add_up_by_name() -> None:
    counts = Counts(clicks=2)
    counts.add({"clicks": 3, "seconds": 1.5})
    counts.add({})
    assert counts == {"clicks": 5, "seconds": 1.5}


def test_sum_of_the_manifests(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "sa_000000.tar",
        [make_sample(0), make_sample(1)],
        skipped={"a": "too_small", "b": "unreadable"},
        counts={"clicks": 2, "seconds": 1.0},
    )
    write_shard(tmp_path / "sa_000001.tar", [make_sample(2, num_masks=1)], skipped={"c": "too_small"}, counts={"clicks": 3})
    write_shard(tmp_path / "sa_000002.tar", [make_sample(3)])
    manifest_path(tmp_path / "sa_000002.tar").unlink()
    (tmp_path / ".sa_000003.tar.1.tmp").write_bytes(b"half a shard")
    worked = [{"images": 2, "skipped": 2, "seconds": 8.0}, {"images": 1, "skipped": 1, "seconds": 2.0}]
    ledger = read_ledger(tmp_path, worked)
    assert ledger == Ledger(
        shards=2,
        images=3,
        masks=5,
        skipped={"too_small": 2, "unreadable": 1},
        counts={"clicks": 5, "seconds": 1},
        machine_seconds=10.0,
        images_per_machine_second=0.6,
    )
    write_ledger(tmp_path, ledger)
    assert json.loads((tmp_path / "ledger.json").read_bytes()) == {
        "shards": 2,
        "images": 3,
        "masks": 5,
        "skipped": {"too_small": 2, "unreadable": 1},
        "counts": {"clicks": 5, "seconds": 1},
        "machine_seconds": 10.0,
        "images_per_machine_second": 0.6,
    }


def test_folder_without_shards(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == Ledger(shards=0, images=0, masks=0, skipped={}, counts={})
