from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_train.errors import ShardError
from sam_train.shards import Manifest, done_shards, load_manifest, manifest_path
from sam_train.shards.index import index_shard
from sam_train.shards.manifest import PLACES_COLUMNS


@pytest.mark.parametrize(
    ("shard", "manifest"),
    [("sa_000000.tar", "sa_000000.manifest.json"), ("a.b.tar", "a.b.manifest.json"), ("a.tar.tar", "a.tar.manifest.json")],
)
def test_manifest_lies_beside_its_shard(shard: str, manifest: str) -> None:
    assert manifest_path(Path("folder") / shard) == Path("folder") / manifest


def test_manifest_describes_the_tar(tiny_shard: Path) -> None:
    manifest = load_manifest(tiny_shard)
    assert manifest.shard == tiny_shard.name
    assert manifest.sha256 == hashlib.sha256(tiny_shard.read_bytes()).hexdigest()
    assert manifest.bytes == tiny_shard.stat().st_size
    assert manifest.keys == ["sa_000000", "sa_000001", "sa_000002"]
    assert manifest.num_masks == 3
    assert (manifest.skipped, manifest.counts, manifest.provenance) == ({}, {}, {})


def test_manifest_survives_a_json_round_trip(tiny_shard: Path) -> None:
    data = manifest_path(tiny_shard).read_bytes()
    assert Manifest(**json.loads(data)).to_json() == data
    assert data.endswith(b"}\n")


def test_rejects_a_missing_manifest(tiny_shard: Path) -> None:
    manifest_path(tiny_shard).unlink()
    with pytest.raises(ShardError, match=r"no manifest sa_000000\.manifest\.json.*write it again") as caught:
        load_manifest(tiny_shard)
    assert caught.value.shard == str(tiny_shard)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"{}", b"[]", b"null", b'"text"'])
def test_rejects_an_invalid_manifest(tiny_shard: Path, data: bytes) -> None:
    manifest_path(tiny_shard).write_bytes(data)
    with pytest.raises(ShardError, match=r"not JSON|keys of the manifest are not"):
        load_manifest(tiny_shard)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"sha256": None}])
def test_rejects_missing_and_unknown_keys(tiny_shard: Path, change: dict[str, object]) -> None:
    document = json.loads(manifest_path(tiny_shard).read_bytes())
    for key, value in change.items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    manifest_path(tiny_shard).write_text(json.dumps(document))
    with pytest.raises(ShardError, match="keys of the manifest are not"):
        load_manifest(tiny_shard)


def test_done_shards_have_a_manifest(tmp_path: Path) -> None:
    for name in ("b", "a", "incomplete"):
        (tmp_path / f"{name}.tar").touch()
    for name in ("b", "a", "lonely"):
        manifest_path(tmp_path / f"{name}.tar").touch()
    assert done_shards(tmp_path) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert done_shards(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard", 1),
        ("sha256", None),
        ("bytes", "9"),
        ("bytes", True),
        ("keys", 3),
        ("keys", [3]),
        ("num_masks", 1.5),
        ("skipped", {"a": 1}),
        ("counts", {"a": "1"}),
        ("provenance", []),
    ],
)
def test_rejects_values_of_other_types(tiny_shard: Path, field: str, value: object) -> None:
    path = manifest_path(tiny_shard)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ShardError, match=r"got .*, expected") as caught:
        load_manifest(tiny_shard)
    assert caught.value.field == f"manifest.{field}"


def test_rejects_a_deeply_nested_manifest(tiny_shard: Path) -> None:
    manifest_path(tiny_shard).write_text("[" * 100_000)
    with pytest.raises(ShardError, match="not JSON"):
        load_manifest(tiny_shard)


def test_places_are_the_byte_ranges_of_the_members(tiny_shard: Path) -> None:
    manifest = load_manifest(tiny_shard)
    assert manifest.places is not None
    assert set(manifest.places) == set(PLACES_COLUMNS)
    data = tiny_shard.read_bytes()
    for position, key in enumerate(manifest.keys):
        place = {name: column[position] for name, column in manifest.places.items()}
        jpeg = data[place["jpeg_offset"] :][: place["jpeg_bytes"]]
        document = json.loads(data[place["json_offset"] :][: place["json_bytes"]])
        assert (jpeg[:2], jpeg[-2:]) == (b"\xff\xd8", b"\xff\xd9")
        assert document["image"]["file_name"] == f"{key}.jpg"
        assert {name: document["image"][name] for name in ("image_id", "width", "height")}.items() <= place.items()
        assert len(document["annotations"]) == place["num_masks"]


def without_places(shard: Path) -> None:
    """Return a manifest of an earlier version, without places."""
    document = json.loads(manifest_path(shard).read_bytes())
    del document["places"]
    manifest_path(shard).write_text(json.dumps(document, indent=1) + "\n")


@pytest.mark.parametrize("older", [without_places, lambda shard: manifest_path(shard).unlink()], ids=["older", "none"])
def test_index_is_the_same_without_places(tiny_shard: Path, older: Callable[[Path], None]) -> None:
    by_manifest = list(index_shard(tiny_shard))
    older(tiny_shard)
    assert list(index_shard(tiny_shard)) == by_manifest
    assert len(by_manifest) == 3


def test_index_from_manifest_reads_one_tar_header_only(tiny_shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_train.shards.index.locate_samples", lambda *_: pytest.fail("the tar was read"))
    assert [sample.key for sample in index_shard(tiny_shard)] == ["sa_000000", "sa_000001", "sa_000002"]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("json_bytes", [1, 2]),
        ("jpeg_offset", [0, 0, 1 << 40]),
        ("json_offset", [-1, 0, 0]),
        ("image_id", ["a", 1, 2]),
        ("json_bytes", 3),
    ],
)
def test_rejects_invalid_places(tiny_shard: Path, name: str, column: object) -> None:
    document = json.loads(manifest_path(tiny_shard).read_bytes())
    document["places"][name] = column
    manifest_path(tiny_shard).write_text(json.dumps(document))
    with pytest.raises(ShardError, match=r"places|manifest") as caught:
        index_shard(tiny_shard)
    assert caught.value.shard == str(tiny_shard)
