"""Import of SA-1B's published tars and of folders in their format."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_train.cli.commands import data as main
from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.shards import decode_jpeg, encode_jpeg, expand_shards, iterate_samples, load_manifest
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.sa1b import import_sa1b

Pair = tuple[ImageRecord, bytes]


def whole_numbers(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with integers where Meta's JSON has them."""
    for annotation in document["annotations"]:
        annotation["bbox"] = [int(side) for side in annotation["bbox"]]
        annotation["crop_box"] = [int(side) for side in annotation["crop_box"]]
    return document


@pytest.fixture
def pairs(sample: Callable[..., Pair]) -> dict[str, bytes]:
    """Members of five pairs, sa_0 to sa_4, sizes and masks as Meta's JSON writes them."""
    members = {}
    for index in range(5):
        record, jpeg = sample(index, height=40 + index, num_masks=index)
        document = whole_numbers(json.loads(record.to_json().replace(record.key.encode(), b"sa_%d" % index)))
        members[f"sa_{index}.jpg"] = jpeg
        members[f"sa_{index}.json"] = json.dumps(document).encode()
    return members


def tar_of(members: dict[str, bytes], order: Iterable[str], prefix: str = "./") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in order:
            info = tarfile.TarInfo(prefix + name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    return stream.getvalue()


def imported(source: Path, **options: Any) -> dict[str, tuple[ImageRecord, bytes]]:
    return {record.key: (record, jpeg) for record, jpeg in import_sa1b(source, **options)}


def check_all(found: dict[str, Pair], pairs: dict[str, bytes]) -> None:
    assert sorted(found) == [f"sa_{n}" for n in range(5)]
    for key, (record, jpeg) in found.items():
        assert json.loads(record.to_json()) == json.loads(pairs[f"{key}.json"])
        assert record.to_json() == json.dumps(json.loads(pairs[f"{key}.json"]), separators=(",", ":")).encode()
        np.testing.assert_array_equal(decode_jpeg(jpeg), decode_jpeg(pairs[f"{key}.jpg"]))


SCATTERED = sorted([f"sa_{n}.jpg" for n in range(5)]) + [f"sa_{n}.json" for n in (3, 0, 4, 1, 2)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_imports_members_in_any_order(tmp_path: Path, pairs: dict[str, bytes], pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "sa_000000.tar").write_bytes(pack(tar_of(pairs, SCATTERED)))
    found = imported(tmp_path / "sa_000000.tar")
    check_all(found, pairs)
    assert list(found) == ["sa_3", "sa_0", "sa_4", "sa_1", "sa_2"], "a pair is at the position of its second member"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_imports_pairs_across_tars_and_single_files(
    tmp_path: Path, pairs: dict[str, bytes], pack: Callable[[bytes], bytes]
) -> None:
    for number in range(5):  # more tars than are open at once, and every JSON far from its image
        (tmp_path / f"sa_{number:06d}.tar").write_bytes(pack(tar_of(pairs, [f"sa_{number}.jpg"])))
    (tmp_path / "sa_000005.tar").write_bytes(tar_of(pairs, [f"sa_{n}.json" for n in (2, 0, 3, 1)]))
    (tmp_path / "sa_4.json").write_bytes(pairs["sa_4.json"])
    (tmp_path / "LICENSE").write_text("not a sample")
    (tmp_path / ".hidden.json").write_text("neither")
    check_all(imported(tmp_path), pairs)


def test_imports_a_folder(tmp_path: Path, pairs: dict[str, bytes]) -> None:
    for name, data in pairs.items():
        folder = tmp_path / ("a" if "1" in name else "b")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    check_all(imported(tmp_path), pairs)


def test_imports_our_own_shards(tmp_path: Path, tiny_shard: Path, tiny_samples: list[Pair]) -> None:
    found = imported(tiny_shard.parent)
    assert [record for record, _ in found.values()] == [record for record, _ in tiny_samples]


def test_command_imports_tars(tmp_path: Path, pairs: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(tar_of(pairs, [*SCATTERED[:-1]]))
    command = ["import", "sa1b", "--source", f"{tmp_path}/in", "--out", f"{tmp_path}/out"]
    with pytest.raises(SystemExit):
        main(command)
    assert "sa_2.jpg in " in capsys.readouterr().err
    main([*command, "--missing", "leave_out"])
    assert "counted: 1 label_missing" in capsys.readouterr().out
    (shard,) = expand_shards(f"{tmp_path}/out")
    assert len(list(iterate_samples([shard]))) == 4
    assert load_manifest(shard).counts == {"label_missing": 1}, "counts after the last sample are stored"


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {}
    for n in range(40):
        jpeg = encode_jpeg(rng.integers(0, 256, (300, 300, 3)).astype(np.uint8))
        record = ImageRecord(key=f"sa_{n}", image_id=n, width=300, height=300, masks=[])
        members |= {f"sa_{n}.jpg": jpeg, f"sa_{n}.json": record.to_json()}
    total = sum(map(len, members.values()))
    assert total > 6_000_000
    order = [f"sa_{n}.jpg" for n in range(40)] + [f"sa_{n}.json" for n in range(40)]
    (tmp_path / "a.tar").write_bytes(tar_of(members, order))
    del members
    tracemalloc.start()
    try:
        assert sum(1 for _ in import_sa1b(tmp_path)) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < total / 2


def test_removes_exif_orientation_because_masks_refer_to_stored_pixels(tmp_path: Path, pairs: dict[str, bytes]) -> None:
    stored = Image.open(io.BytesIO(pairs["sa_2.jpg"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    stored.save(stream, "JPEG", quality=95, exif=exif)
    (tmp_path / "sa_2.jpg").write_bytes(stream.getvalue())
    (tmp_path / "sa_2.json").write_bytes(pairs["sa_2.json"])
    ((record, jpeg),) = import_sa1b(tmp_path)
    assert decode_jpeg(jpeg).shape[:2] == (record.height, record.width) == (42, 64)
    assert b"Exif" not in jpeg


def changed(pairs: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(pairs["sa_2.json"])
    change(document)
    return json.dumps(document).encode()


WRONG_JSON: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "size": (lambda d: d["image"].update(width=63), "63 x 42|RLE size"),
    "rle_size": (lambda d: d["annotations"][1]["segmentation"].update(size=[42, 65]), r"annotations\[1\].*RLE size"),
    "rle_runs": (lambda d: d["annotations"][0]["segmentation"].update(counts="1"), "add up to"),
    "rle_garbage": (lambda d: d["annotations"][0]["segmentation"].update(counts="\u00ff"), "malformed"),
    "climbing": (lambda d: d["image"].update(file_name="../../sa_2.jpg"), "is for the image '../../sa_2.jpg'"),
    "other": (lambda d: d["image"].update(file_name="sa_3.jpg"), "expected 'sa_2.jpg'"),
    "no_segmentation": (lambda d: d["annotations"][0].pop("segmentation"), "expected polygons or an RLE"),
    "no_masks": (lambda d: d.pop("annotations"), "missing key"),
}


@pytest.mark.parametrize("wrong", WRONG_JSON)
def test_error_names_the_wrong_json(tmp_path: Path, pairs: dict[str, bytes], wrong: str) -> None:
    change, message = WRONG_JSON[wrong]
    (tmp_path / "sa_2.jpg").write_bytes(pairs["sa_2.jpg"])
    (tmp_path / "sa_2.json").write_bytes(changed(pairs, change))
    with pytest.raises(ShardError, match=message) as caught:
        list(import_sa1b(tmp_path))
    assert "sa_2" in str(caught.value)


def size_of_a_member_that_never_was(data: bytes) -> bytes:
    header = bytearray(data[:512])
    header[124:136] = b"%011o\0" % (1 << 32)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


WRONG_TARS: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "climbing": (lambda pairs: tar_of(pairs, ["sa_1.jpg"], prefix="../../"), "leads out of the folder"),
    "absolute": (lambda pairs: tar_of(pairs, ["sa_1.jpg"], prefix="/etc/"), "leads out of the folder"),
    "twice": (lambda pairs: tar_of(pairs, ["sa_1.jpg", "sa_1.json", "sa_1.jpg"]), "is a duplicate"),
    "twice_before": (lambda pairs: tar_of(pairs, ["sa_1.jpg", "sa_1.jpg"]), "is a duplicate"),
    "no_tar": (lambda _: b"what is this" * 100, "truncated, corrupt or not a tar"),
    "empty_file": (lambda _: b"", "truncated, corrupt or not a tar"),
    "truncated": (lambda pairs: tar_of(pairs, SCATTERED)[:4000], "truncated, corrupt or not a tar"),
    "truncated_between_members": (lambda pairs: tar_of(pairs, ["sa_0.json"])[:1024], "truncated, corrupt or not a tar"),
    "truncated_gzip": (lambda pairs: gzip.compress(tar_of(pairs, SCATTERED))[:3000], "truncated, corrupt or not a tar"),
    "bomb": (lambda _: gzip.compress(bytes(3 << 20)), "decompresses to more than"),
    "huge_size": (lambda pairs: size_of_a_member_that_never_was(tar_of(pairs, ["sa_1.jpg"])), "truncated, corrupt or not a tar"),
    "alone": (lambda pairs: tar_of(pairs, ["sa_1.jpg"]), r"sa_1.jpg in .* has no .json"),
    "no_picture": (lambda pairs: tar_of({**pairs, "sa_1.jpg": b"\xff\xd8\xff"}, ["sa_1.jpg", "sa_1.json"]), "sa_1.jpg in"),
}


@pytest.mark.parametrize("wrong", WRONG_TARS)
def test_error_names_the_wrong_tar(tmp_path: Path, pairs: dict[str, bytes], wrong: str) -> None:
    make, message = WRONG_TARS[wrong]
    (tmp_path / "bad.tar").write_bytes(make(pairs))
    with pytest.raises(ShardError, match=message) as caught:
        list(import_sa1b(tmp_path))
    assert "bad.tar" in str(caught.value)


def test_links_in_a_tar_are_not_followed(tmp_path: Path, pairs: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        link = tarfile.TarInfo("sa_1.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "bad.tar").write_bytes(stream.getvalue())
    with pytest.raises(ShardError, match="no SA-1B files"):
        list(import_sa1b(tmp_path))


def test_skips_and_counts_unpaired_files(tmp_path: Path, pairs: dict[str, bytes]) -> None:
    names: Sequence[str] = ["sa_1.jpg", "sa_2.jpg", "sa_3.json", "sa_4.json", "sa_4.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of(pairs, names))
    counts: Counter[str] = Counter()
    assert list(imported(tmp_path, missing="leave_out", report=ImportReport(counts=counts))) == ["sa_4"]
    assert counts == {"label_missing": 2, "image_missing": 1}
