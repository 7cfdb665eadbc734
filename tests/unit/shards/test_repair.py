"""sam-data repair: its shards are valid, keep all valid samples, and count the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import make_sample
from corruptions import CORRUPTIONS, Members, edit_json, read_members, write_members

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord
from sam_train.shards import Sample, decode_jpeg, iterate_samples, load_manifest, write_shard
from sam_train.shards.maintenance.validate import validate

Samples = list[tuple[ImageRecord, bytes]]

KEPT = {  # damage -> (images of 3 that are kept, masks of 3, what the manifest counts, what it says was left out)
    "no jpg": (2, 1, {}, {"sa_000000": "missing_jpg"}),
    "no json": (2, 1, {}, {"sa_000000": "missing_json"}),
    "not adjacent": (3, 3, {"repair_pairs_joined": 1}, {}),
    "twice": (3, 3, {"repair_members_dropped_duplicate": 1}, {}),
    "bad key": (2, 1, {}, {"a b": "bad_key"}),
    "jpeg cut": (2, 1, {}, {"sa_000000": "undecodable_jpeg"}),
    "jpeg is none": (2, 1, {}, {"sa_000000": "undecodable_jpeg"}),
    "exif": (3, 3, {"repair_metadata_removed": 1}, {}),
    "not json": (2, 1, {}, {"sa_000000": "bad_record"}),
    "unknown key": (3, 2, {"repair_mask_dropped_bad_record": 1}, {}),
    "size": (3, 3, {"repair_size_corrected": 1}, {}),
    "area": (3, 3, {"repair_area_recomputed": 1}, {}),
    "box": (3, 3, {"repair_box_recomputed": 1}, {}),
    "mask id": (3, 3, {"repair_mask_id_renewed": 1}, {}),
    "rle size": (3, 2, {"repair_mask_dropped_bad_rle": 1}, {}),
    "rle counts": (3, 2, {"repair_mask_dropped_bad_rle": 1}, {}),
    "image id": (3, 3, {"repair_image_id_renewed": 1}, {}),
}


def repair(out: Path, *shards: Path) -> Path:
    main(["repair", *map(str, shards), "--out", str(out)])
    return out / shards[0].name


def samples_of(shard: Path) -> dict[str, Sample]:
    return {sample.record.key: sample for sample in iterate_samples([shard])}


def test_every_corruption_has_a_test() -> None:
    assert KEPT.keys() == CORRUPTIONS.keys()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_keeps_what_can_be_repaired(tiny_shard: Path, tmp_path: Path, name: str, tiny_samples: Samples) -> None:
    broken = write_members(tmp_path / "broken" / "a.tar", CORRUPTIONS[name][0](read_members(tiny_shard)))
    before = broken.read_bytes()
    repaired = repair(tmp_path / "out", broken)
    assert broken.read_bytes() == before
    assert validate([repaired])[0] == []
    manifest, (num_images, num_masks, counts, skipped) = load_manifest(repaired), KEPT[name]
    assert (len(manifest.keys), manifest.num_masks, manifest.counts, manifest.skipped) == (num_images, num_masks, counts, skipped)
    samples = samples_of(repaired)
    for record, jpeg in tiny_samples:
        if record.key in samples:
            assert (decode_jpeg(samples[record.key].jpeg) == decode_jpeg(jpeg)).all()
    if name in ("size", "area", "box", "exif", "twice", "not adjacent"):
        assert {key: sample.record for key, sample in samples.items()} == {record.key: record for record, _ in tiny_samples}


def test_repairs_all_corruptions_at_once(tiny_shard: Path, tmp_path: Path) -> None:
    """One shard per corruption, all with the same keys: the first valid sample of each key is kept."""
    shards = [
        write_members(tmp_path / "broken" / f"{number}.tar", damage(read_members(tiny_shard)))
        for number, (damage, _) in enumerate(CORRUPTIONS.values())
    ]
    repair(tmp_path / "out", *shards)
    repaired = sorted((tmp_path / "out").glob("*.tar"))
    assert len(repaired) == len(shards)
    findings, num_samples, num_masks = validate(repaired)
    assert (findings, num_samples, num_masks) == ([], 3, 3)
    reasons = Counter(reason for shard in repaired for reason in load_manifest(shard).skipped.values())
    assert reasons["duplicate_key"] > 2 * len(shards)


def test_keeps_the_samples_before_a_truncation(tiny_shard: Path, tmp_path: Path, tiny_samples: Samples) -> None:
    data = tiny_shard.read_bytes()
    cut = tmp_path / "broken" / tiny_shard.name
    cut.parent.mkdir()
    cut.write_bytes(data[: data.index(b"sa_000002.jpg") + 700])
    manifest = tiny_shard.with_name("sa_000000.manifest.json")
    cut.with_name(manifest.name).write_bytes(manifest.read_bytes())
    repaired = repair(tmp_path / "out", cut)
    assert validate([repaired])[0] == []
    assert {key: sample.record for key, sample in samples_of(repaired).items()} == {r.key: r for r, _ in tiny_samples[:2]}
    found = load_manifest(repaired)
    assert (found.counts, found.skipped) == ({"repair_tears": 1}, {"sa_000002": "lost"})


def test_resumes_after_a_damaged_header(tiny_shard: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_shard.read_bytes())
    at = data.index(b"sa_000001.jpg")
    data[at : at + 512] = b"\x07" * 512
    (tmp_path / "a.tar").write_bytes(data)
    repaired = repair(tmp_path / "out", tmp_path / "a.tar")
    assert list(samples_of(repaired)) == ["sa_000000", "sa_000002"]
    assert load_manifest(repaired).skipped == {"sa_000001": "missing_jpg"}


def test_valid_shard_keeps_its_bytes(tiny_shard: Path, tmp_path: Path) -> None:
    assert repair(tmp_path / "out", tiny_shard).read_bytes() == tiny_shard.read_bytes()


def test_keeps_the_counts_of_the_old_manifest(tmp_path: Path, tiny_samples: Samples) -> None:
    source = tmp_path / "in" / "a.tar"
    write_shard(source, tiny_samples, skipped={"x": "unreadable"}, counts={"clicks": 3.0}, provenance={"stage": "import"})
    manifest = load_manifest(repair(tmp_path / "out", source))
    assert (manifest.skipped, manifest.counts) == ({"x": "unreadable"}, {"clicks": 3.0})
    assert manifest.provenance["source_provenance"] == {"stage": "import"}


def test_drops_the_repeated_one_of_two_masks_with_the_same_id(tiny_shard: Path, tmp_path: Path) -> None:
    def twice(document: dict[str, Any]) -> None:
        document["annotations"].append(document["annotations"][0])

    broken = write_members(tmp_path / "a.tar", edit_json(read_members(tiny_shard), twice))
    manifest = load_manifest(repair(tmp_path / "out", broken))
    assert (manifest.num_masks, manifest.counts) == (3, {"repair_mask_dropped_duplicate": 1})


def test_uses_the_valid_one_of_two_members(tiny_shard: Path, tmp_path: Path, tiny_samples: Samples) -> None:
    members: Members = read_members(tiny_shard)
    broken = write_members(tmp_path / "a.tar", [*members, (members[0][0], b"cut"), (members[1][0], b"{")])
    sample = samples_of(repair(tmp_path / "out", broken))["sa_000000"]
    assert (sample.record, sample.jpeg) == tiny_samples[0]


def test_drops_an_image_of_another_size_than_all_its_masks(tmp_path: Path, tiny_samples: Samples) -> None:
    (record, _), (_, other) = tiny_samples[:2]
    broken = write_members(tmp_path / "a.tar", [(f"{record.key}.jpg", other), (f"{record.key}.json", record.to_json())])
    manifest = load_manifest(repair(tmp_path / "out", broken))
    assert (manifest.keys, manifest.skipped) == ([], {record.key: "wrong_size"})


def test_rejects_the_folder_of_the_old_shards(tiny_shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked = tmp_path / "linked" / tiny_shard.name
    linked.parent.mkdir()
    linked.hardlink_to(tiny_shard)
    for out in (tiny_shard.parent, tiny_shard.parent / ".." / "shards", linked.parent):
        with pytest.raises(SystemExit):
            repair(out, tiny_shard)
        assert "never changed in place" in capsys.readouterr().err
    other = write_members(tmp_path / "other" / tiny_shard.name, read_members(tiny_shard))
    with pytest.raises(SystemExit):
        repair(tmp_path / "out", tiny_shard, other)
    assert "have the same file name" in capsys.readouterr().err


def test_second_run_keeps_finished_shards(tiny_shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [write_members(tmp_path / "in" / f"{n}.tar", read_members(tiny_shard)[2 * n :]) for n in range(2)]
    repair(tmp_path / "out", *shards)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "1.manifest.json").unlink()
    repair(tmp_path / "out", *shards)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert json.loads(before["1.manifest.json"])["skipped"] == {"sa_000001": "duplicate_key", "sa_000002": "duplicate_key"}
    write_members(shards[0], read_members(tiny_shard)[:2])
    with pytest.raises(SystemExit):
        repair(tmp_path / "out", *shards)
    assert "from another source" in capsys.readouterr().err


def taken(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("name", ["1", "sa_000001", "sa_000001  # by letter of 3 May"])
def test_drops_images_that_were_taken_down(
    tiny_shard: Path, tmp_path: Path, tiny_samples: Samples, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["repair", str(tiny_shard), "--out", str(out), "--drop-ids", taken(tmp_path, "# letters", "", name, "999")])
    target = out / tiny_shard.name
    assert {key: s.record for key, s in samples_of(target).items()} == {
        record.key: record for record, _ in tiny_samples if record.image_id != 1
    }
    manifest = load_manifest(target)
    assert (manifest.skipped, manifest.provenance["drop_ids_sha256"][:1].isalnum()) == ({"sa_000001": "taken_down"}, True)
    assert validate([target])[0] == []
    assert "images taken down: 1; " in (printed := capsys.readouterr().out)
    assert printed.rstrip().endswith("ids.txt names 2")
    assert b"sa_000001." not in target.read_bytes()


def test_rejects_another_list_for_the_same_folder(tiny_shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["repair", str(tiny_shard), "--out", str(tmp_path / "out")]
    main([*arguments, "--drop-ids", taken(tmp_path, "1")])
    main([*arguments, "--drop-ids", taken(tmp_path, "1")])
    for other in ([], ["--drop-ids", taken(tmp_path, "1", "2")]):
        with pytest.raises(SystemExit):
            main([*arguments, *other])
        assert "from another source or list" in capsys.readouterr().err


def test_rejects_an_unreadable_list_before_writing(tiny_shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, expected in (
        (taken(tmp_path, "1", "a/b.jpg"), "line 2: 'a/b.jpg' is neither an image id nor a key"),
        ("none.txt", "cannot be read"),
    ):
        with pytest.raises(SystemExit):
            main(["repair", str(tiny_shard), "--out", str(tmp_path / "out"), "--drop-ids", path])
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_copies_the_privacy_audit_of_kept_images(tmp_path: Path) -> None:
    """The audit has the ids of the new shards; an invalid line is counted."""
    samples = [make_sample(index) for index in range(2)]
    write_shard(tmp_path / "old" / "sa_000000.tar", samples)
    lines = [{"key": record.key, "image_id": 99, "kind": "faces"} for record, _ in samples]
    audit = tmp_path / "old" / "privacy" / "sa_000000.jsonl"
    audit.parent.mkdir()
    audit.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"key": "sa_0')
    (tmp_path / "list.txt").write_text(samples[0][0].key)
    main(["repair", str(tmp_path / "old"), "--out", str(tmp_path / "new"), "--drop-ids", str(tmp_path / "list.txt")])
    carried = (tmp_path / "new" / "privacy" / "sa_000000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in carried] == [{**lines[1], "image_id": samples[1][0].image_id}]
    assert load_manifest(tmp_path / "new" / "sa_000000.tar").counts["repair_audit_lines_dropped"] == 1
