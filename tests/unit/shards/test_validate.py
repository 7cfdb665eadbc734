"""sam-data validate: every corruption has its reason, and valid shards have no findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corruptions import CORRUPTIONS, edit_json, read_members, write_members

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord
from sam_train.shards import write_shard
from sam_train.shards.maintenance.findings import NOTES, printable
from sam_train.shards.maintenance.validate import validate

Samples = list[tuple[ImageRecord, bytes]]


def reasons(*shards: Path, notes: bool = False) -> set[str]:
    return {item.reason for item in validate(list(shards))[0] if (item.reason in NOTES) == notes}


def command(*arguments: object) -> int:
    try:
        main(["validate", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_valid_shard_has_no_findings(tiny_shard: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate([tiny_shard]) == ([], 3, 3)
    assert command(tiny_shard) == 0
    assert "1 shards, 3 samples, 3 masks: no errors" in capsys.readouterr().out


def test_released_tars_have_only_notes(tiny_shard: Path, tmp_path: Path) -> None:
    """They have ./ before the names, no manifest, boxes one pixel less in width and height, and foreign files."""

    def as_released(document: dict[str, Any]) -> None:
        for mask in document["annotations"]:
            mask["bbox"] = [mask["bbox"][0], mask["bbox"][1], mask["bbox"][2] - 1, mask["bbox"][3] - 1]
            del mask["provenance"]

    members = [(f"./{name}", data) for name, data in read_members(tiny_shard)]
    for at in (1, 3, 5):
        document = json.loads(members[at][1])
        for mask in document["annotations"]:
            mask.setdefault("provenance", None)
        members[at] = (members[at][0], json.dumps(document).encode())
        members = edit_json(members, as_released, at)
    shard = write_members(tmp_path / "meta" / "sa_000020.tar", [("./LICENSE", b"x"), *members])
    assert reasons(shard) == set()
    assert reasons(shard, notes=True) == {"no_manifest", "other_member"}
    assert command(shard) == 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_has_its_reason(tiny_shard: Path, tmp_path: Path, name: str) -> None:
    damage, expected = CORRUPTIONS[name]
    shard = write_members(tmp_path / "broken" / "a.tar", damage(read_members(tiny_shard)))
    findings, num_samples, _ = validate([shard])
    found = {item.reason for item in findings if item.reason not in NOTES}
    assert found == expected
    assert all(item.shard == str(shard) and item.message for item in findings)
    assert num_samples >= 2, "it goes on behind a bad sample"
    assert command(shard) == 1


def test_findings_name_key_and_field(tiny_shard: Path, tmp_path: Path) -> None:
    shard = write_members(tmp_path / "a.tar", CORRUPTIONS["area"][0](read_members(tiny_shard)))
    (finding,) = [item for item in validate([shard])[0] if item.reason == "wrong_area"]
    assert (finding.key, finding.field) == ("sa_000000", "annotations[0].area")
    assert "area 3" in finding.message


def test_truncated_tar_is_read_up_to_the_end(tiny_shard: Path, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    data = tiny_shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    findings, num_samples, _ = validate([shard])
    assert num_samples in (1, 2)
    assert {"torn_tar"} <= {item.reason for item in findings} <= {"torn_tar", "missing_json", "no_manifest"}


def test_damaged_header_loses_only_its_member(tiny_shard: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_shard.read_bytes())
    at = data.index(b"sa_000001.jpg")
    data[at : at + 512] = b"\x07" * 512
    shard = tmp_path / "a.tar"
    shard.write_bytes(data)
    findings, num_samples, _ = validate([shard])
    assert num_samples == 2
    assert {item.reason for item in findings} == {"torn_tar", "missing_jpg", "no_manifest"}
    (damage,) = [item for item in findings if item.reason == "torn_tar"]
    assert f"at byte {at}" in damage.message
    assert "the next member begins at byte" in damage.message


@pytest.mark.parametrize("data", [b"", b"no tar", bytes(400), b"\x1f\x8b" + bytes(600)])
def test_reports_a_file_that_is_not_a_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    assert reasons(tmp_path / "a.tar") == {"torn_tar"}


def test_compares_the_manifest_with_the_tar(tiny_shard: Path, tiny_samples: Samples) -> None:
    manifest = tiny_shard.with_name("sa_000000.manifest.json")
    document = json.loads(manifest.read_text())
    changes: dict[str, Any] = {"shard": "b.tar", "bytes": 1, "sha256": "0" * 64, "keys": ["x"], "num_masks": 9}
    for field, value in changes.items():
        manifest.write_text(json.dumps({**document, field: value}))
        name = "name" if field == "shard" else field
        assert reasons(tiny_shard) == {f"manifest_{name}"}
    for change in ({"jpeg_offset": [0, 1, 2]}, {"json_bytes": document["places"]["json_bytes"][:2]}):
        manifest.write_text(json.dumps({**document, "places": document["places"] | change}))
        assert reasons(tiny_shard) == {"manifest_places"}
    manifest.write_text(json.dumps({**document, "places": None}))
    assert reasons(tiny_shard) == set()
    for text in ("", "[]", "{}"):
        manifest.write_text(text)
        assert reasons(tiny_shard) == {"bad_manifest"}
    for keys in (3, None, [3], ["sa_000001", "sa_000000", "sa_000002"]):
        manifest.write_text(json.dumps({**document, "keys": keys}))
        assert reasons(tiny_shard) <= {"manifest_keys", "bad_manifest"} != set()


def test_keys_and_ids_are_unique_over_shards(tmp_path: Path, tiny_samples: Samples) -> None:
    write_shard(tmp_path / "a.tar", tiny_samples)
    write_shard(tmp_path / "b.tar", tiny_samples[1:2])
    found = validate([tmp_path / "a.tar", tmp_path / "b.tar"])[0]
    assert {(item.shard, item.key, item.reason) for item in found} == {
        (str(tmp_path / "b.tar"), "sa_000001", reason) for reason in ("duplicate_key", "duplicate_image_id")
    }
    assert all(f"sa_000001 of {tmp_path / 'a.tar'}" in item.message for item in found)


def test_report_and_several_processes(tiny_shard: Path, tmp_path: Path) -> None:
    broken = [write_members(tmp_path / f"{n}.tar", CORRUPTIONS["area"][0](read_members(tiny_shard))) for n in range(3)]
    documents = []
    for workers in (1, 2):
        report = tmp_path / f"{workers}.json"
        assert command(*broken, "--json", report, "--workers", workers) == 1
        documents.append(json.loads(report.read_text()))
    assert documents[0] == documents[1]
    assert documents[0]["by_reason"] == {"duplicate_image_id": 6, "duplicate_key": 6, "wrong_area": 3}
    assert set(documents[0]["findings"][0]) == {"shard", "key", "field", "reason", "message"}
    assert [note["reason"] for note in documents[0]["notes"]] == ["no_manifest"] * 3
    assert command(tiny_shard, "--workers", 0) == 1


def test_texts_of_a_hostile_file_are_safe_to_print() -> None:
    assert printable("a\x1b[2J\ud800ä") == "a\\x1b[2J\\ud800ä"
    assert len(printable("a" * 10_000)) == 300


def test_members_of_no_sample_are_reported(tmp_path: Path, tiny_samples: Samples, capsys: pytest.CaptureFixture[str]) -> None:
    record, jpeg = tiny_samples[0]
    members = [(f"{record.key}.jpg", jpeg), (f"{record.key}.json", record.to_json())]
    members += [("img.v2.jpg", jpeg), ("img.v2.json", record.to_json()), ("LICENSE", b"text")]
    write_members(tmp_path / "sets" / "train" / "a.tar", members)
    assert command(tmp_path / "sets") == 1
    shown = capsys.readouterr().out
    assert "2  dotted_name" in shown
    assert "1  note, other_member" in shown
    assert "img.v2.jpg is part of no sample: sam-data import sa1b gives it a key without dots" in shown
