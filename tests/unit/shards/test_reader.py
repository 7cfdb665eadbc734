"""Sequential and random reading of a shard give the same samples and reject the same tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord
from sam_train.shards import Sample, expand_shards, iterate_samples, write_shard
from sam_train.shards.index import index_shard, read_sample

Samples = list[tuple[ImageRecord, bytes]]
Read = Callable[[Path], list[Sample]]


def in_one_pass(shard: Path) -> list[Sample]:
    return list(iterate_samples([shard]))


def by_place(shard: Path) -> list[Sample]:
    return [read_sample(entry) for entry in index_shard(shard)]


@pytest.fixture(params=[in_one_pass, by_place])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_reads_samples_in_order(tiny_shard: Path, tiny_samples: Samples) -> None:
    found = list(iterate_samples([tiny_shard, tiny_shard]))
    assert [(sample.record, sample.jpeg) for sample in found] == tiny_samples * 2
    assert {sample.shard for sample in found} == {str(tiny_shard)}


def test_reads_sa1b_as_released(tmp_path: Path, tiny_samples: Samples, read: Read) -> None:
    """Members may be in ./ and other folders, with unrelated files between the pairs."""
    record, jpeg = tiny_samples[0]
    members = {
        "./.hidden": b"x",
        f"./{record.key}.JPG": jpeg,
        f"./{record.key}.txt": b"a caption",
        f"../../{record.key}.json": record.to_json(),
        f"{record.key}.thumb.jpg": b"x",
        "._other.jpg": b"x",
    }
    (sample,) = read(write_tar(tmp_path / "a.tar", members))
    assert (sample.record, sample.jpeg) == (record, jpeg)


def test_rejects_a_tar_truncated_anywhere_before_its_first_sample(tmp_path: Path, tiny_shard: Path, read: Read) -> None:
    """tarfile alone would read a shard that is truncated between two members as a shorter shard."""
    data = tiny_shard.read_bytes()
    with tarfile.open(tiny_shard) as tar:
        end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in tar)
    truncated = tmp_path / "truncated.tar"
    for cut in [*range(0, end + 512, 512), 1, 700, end - 1, end + 511]:
        truncated.write_bytes(data[:cut])
        with pytest.raises(ShardError, match="truncated") as caught:
            next(iterate_samples([truncated]))
        assert caught.value.shard == str(truncated)
        with pytest.raises(ShardError, match="truncated"):
            read(truncated)
    truncated.write_bytes(data[: end + 512])  # the second end block that POSIX requires is not needed
    assert len(read(truncated)) == 3


def test_rejects_a_corrupt_header(tmp_path: Path, tiny_shard: Path, read: Read) -> None:
    data = bytearray(tiny_shard.read_bytes())
    with tarfile.open(tiny_shard) as tar:
        third = tar.getmembers()[2].offset
    data[third : third + 512] = b"\x07" * 512
    corrupt = tmp_path / "corrupt.tar"
    corrupt.write_bytes(data)
    with pytest.raises(ShardError, match=f"no valid member header at byte {third}"):
        read(corrupt)


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\x07" * 4096, b"\x1f\x8b" + bytes(600)])
def test_rejects_a_file_that_is_not_a_tar(tmp_path: Path, data: bytes, read: Read) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match="truncated, corrupt or not a tar"):
        read(path)


def test_rejects_a_missing_shard(tmp_path: Path, read: Read) -> None:
    for name in ("absent.tar", "."):
        with pytest.raises(ShardError, match="no such shard"):
            read(tmp_path / name)


@pytest.mark.parametrize("missing", ["jpg", "json"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_rejects_a_jpeg_without_json_and_the_reverse(
    tmp_path: Path, tiny_samples: Samples, missing: str, position: int, read: Read
) -> None:
    members: dict[str, bytes] = {}
    for record, jpeg in tiny_samples:
        members |= {f"{record.key}.jpg": jpeg, f"{record.key}.json": record.to_json()}
    key = tiny_samples[position][0].key
    del members[f"{key}.{missing}"]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=rf"expected {key}.jpg and {key}.json, found only {key}\.js?[op]n?g?\b") as caught:
        read(path)
    assert (caught.value.shard, caught.value.key) == (str(path), key)


def test_one_pass_rejects_pairs_that_are_not_adjacent(tmp_path: Path, tiny_samples: Samples) -> None:
    members = {f"{record.key}.jpg": jpeg for record, jpeg in tiny_samples}
    members |= {f"{record.key}.json": record.to_json() for record, _ in tiny_samples}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(
        ShardError, match=r"sa_000000\.jpg and sa_000000\.json are not adjacent, as in Meta.s own tars: .*import sa1b"
    ):
        in_one_pass(path)
    assert [(sample.record, sample.jpeg) for sample in by_place(path)] == tiny_samples


def test_rejects_duplicate_members(tmp_path: Path, tiny_samples: Samples, read: Read) -> None:
    record, jpeg = tiny_samples[0]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [("jpg", jpeg), ("jpg", jpeg), ("json", record.to_json())]:
            info = tarfile.TarInfo(f"{record.key}.{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ShardError, match="two members have this name"):
        read(path)


@pytest.mark.parametrize("name", ["../up", "/up", "a/up", "a/../../up"])
def test_ignores_the_folders_of_member_names(tmp_path: Path, tiny_samples: Samples, name: str, read: Read) -> None:
    record, jpeg = tiny_samples[0]
    (sample,) = read(write_tar(tmp_path / "a.tar", {f"{name}.jpg": jpeg, f"{name}.json": record.to_json()}))
    assert sample.record.key == "up"


@pytest.mark.parametrize("key", ["a b", "ä", "a" * 201])
def test_rejects_names_that_are_not_valid_keys(tmp_path: Path, tiny_samples: Samples, key: str, read: Read) -> None:
    record, jpeg = tiny_samples[0]
    path = write_tar(tmp_path / "a.tar", {f"{key}.jpg": jpeg, f"{key}.json": record.to_json()})
    with pytest.raises(ShardError, match="rename the image") as caught:
        read(path)
    assert caught.value.shard == str(path)


def test_rejects_a_shard_that_does_not_match_its_manifest(
    tiny_shard: Path, tiny_samples: Samples, tmp_path: Path, read: Read
) -> None:
    write_shard(tmp_path / "other.tar", tiny_samples[:2])
    tiny_shard.write_bytes((tmp_path / "other.tar").read_bytes())
    with pytest.raises(ShardError, match=r"its manifest lists|not those of the manifest"):
        read(tiny_shard)


def test_error_of_an_invalid_record_names_shard_key_and_field(tmp_path: Path, tiny_samples: Samples, read: Read) -> None:
    record, jpeg = tiny_samples[0]
    document = record.to_json().replace(b'"area"', b'"aera"', 1)
    path = write_tar(tmp_path / "a.tar", {f"{record.key}.jpg": jpeg, f"{record.key}.json": document})
    with pytest.raises(ShardError, match="missing key") as caught:
        read(path)
    error = caught.value
    assert (error.shard, error.key, error.field) == (str(path), record.key, "annotations[0].area")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b_01.tar", "b_00.tar", "a[1].tar", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a[1].tar", "b_00.tar", "b_01.tar"]),
        ("b_00.tar", ["b_00.tar"]),
        ("b_*.tar", ["b_00.tar", "b_01.tar"]),
        ("b_{00..01}.tar", ["b_00.tar", "b_01.tar"]),
        ("{b_01,b_00}.tar", ["b_00.tar", "b_01.tar"]),
        ("a[1].tar", ["a[1].tar"]),
        ("b_0[1-9].tar", ["b_01.tar"]),
    ],
)
def test_expands_patterns_to_shards(folder: Path, pattern: str, expected: list[str]) -> None:
    assert expand_shards(str(folder / pattern)) == [folder / name for name in expected]


def test_expands_duplicate_names_once(folder: Path) -> None:
    patterns = [str(folder / "b_*.tar"), str(folder / "b_00.tar"), str(folder)]
    assert [path.name for path in expand_shards(patterns)] == ["a[1].tar", "b_00.tar", "b_01.tar"]


@pytest.mark.parametrize("pattern", ["c_*.tar", "c.tar", "b_{00..02}.tar", "{b_00,c}.tar", "absent"])
def test_rejects_a_pattern_without_matches(folder: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="no shard matches"):
        expand_shards([str(folder / pattern)])


def test_rejects_empty_lists_empty_folders_and_unbalanced_braces(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no shards given"):
        expand_shards([])
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="no shard matches"):
        expand_shards(str(folder / "empty"))
    with pytest.raises(ConfigError, match="is not a valid brace range"):
        expand_shards(str(folder / "b_{00..01.tar"))


def test_reading_does_not_execute_a_pipe_name(tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset executes a name that begins with `pipe:` as a command."""
    monkeypatch.chdir(tmp_path)
    write_shard(Path("pipe:touch ran.tar"), tiny_samples)
    assert len(list(iterate_samples([Path("pipe:touch ran.tar")]))) == 3
    assert not (tmp_path / "ran.tar").exists()


def test_rejects_a_long_chain_of_long_name_headers(tmp_path: Path, tiny_shard: Path, read: Read) -> None:
    """tarfile recurses once per header."""
    with tarfile.open(tmp_path / "link.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a" * 300))
    header = bytearray((tmp_path / "link.tar").read_bytes()[:512])
    header[124:136] = b"00000000000\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) * 3000 + tiny_shard.read_bytes())
    with pytest.raises(ShardError, match="truncated"):
        read(path)
