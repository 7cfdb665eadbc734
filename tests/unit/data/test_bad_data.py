"""Tests that unusable samples and shards are skipped whole, with a counted reason, and that nothing hangs."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from sam_train.data.datamodule import ShardDataModule
from sam_train.data.dataset import ShardDataset
from sam_train.data.record_parser import TargetRecord, parse_target_record
from sam_train.data.sources import expand_sources, index_shards
from sam_train.data.transforms import Transform
from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord
from sam_train.shards import write_shard

MakeSample = Callable[..., tuple[ImageRecord, bytes]]


def write_tar(path: Path, pairs: dict[str, tuple[bytes, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, data in pairs.items():
            for extension, content in zip(("jpg", "json"), data, strict=True):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return path


def modified_json(record: ImageRecord, change: Callable[[dict], object]) -> bytes:  # type: ignore[type-arg]
    document = json.loads(record.to_json())
    change(document)
    return json.dumps(document).encode()


def jpeg_with_size(width: int, height: int, jpeg: bytes) -> bytes:
    """Return the JPEG with another size in its header (SOF0)."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[start + 4 :]


def broken_samples(record: ImageRecord, jpeg: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Return broken samples by the reason under which each must be counted."""
    valid = record.to_json()
    deep = b'{"image":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return {
        "undecodable_jpeg": (jpeg[: len(jpeg) // 2], valid),
        "undecodable_jpeg_2": (jpeg[:-2], valid),
        "undecodable_jpeg_3": (b"", valid),
        "bad_size": (jpeg, modified_json(record, lambda d: d["annotations"][0]["segmentation"].update(size=[48, 63]))),
        "bad_counts": (jpeg, modified_json(record, lambda d: d["annotations"][0]["segmentation"].update(counts="1"))),
        "bad_counts_2": (jpeg, modified_json(record, lambda d: d["annotations"][0]["segmentation"].update(counts="o" * 100_000))),
        "bad_area": (jpeg, modified_json(record, lambda d: d["annotations"][0].update(area="many"))),
        "bad_surprise": (jpeg, modified_json(record, lambda d: d["annotations"][0].update(surprise=1))),
        "too_large": (jpeg_with_size(40_000, 48, jpeg), modified_json(record, lambda d: d["image"].update(width=40_000))),
        "too_large_2": (
            jpeg_with_size(30_000, 30_000, jpeg),
            modified_json(record, lambda d: d["image"].update(width=30_000, height=30_000)),
        ),
        "wrong_size": (jpeg_with_size(64, 47, jpeg), valid),
        "bad_sample": (jpeg, b"{"),
        "bad_sample_2": (jpeg, deep),
    }


BROKEN_SAMPLES = (
    *("undecodable_jpeg", "undecodable_jpeg_2", "undecodable_jpeg_3", "bad_size", "bad_counts", "bad_counts_2", "bad_area"),
    *("bad_surprise", "too_large", "too_large_2", "wrong_size", "bad_sample", "bad_sample_2"),
)


def make_dataset(shards: list[Path], *, strict: bool = False, **values: object) -> ShardDataset:
    shard_set = index_shards(shards, weights=None, cache=None, strict=strict)
    transform = Transform(image_size=32, max_masks=4, max_area_fraction=1.0)
    return ShardDataset(shard_set, transform, **({"seed": 0, "shuffle": False} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BROKEN_SAMPLES)
@pytest.mark.timeout(20)
def test_skips_and_logs_a_broken_sample(name: str, tmp_path: Path, sample: MakeSample, caplog: pytest.LogCaptureFixture) -> None:
    record, jpeg = sample(0)
    other, other_jpeg = sample(7)
    path = write_tar(tmp_path / "a.tar", {"good_0": (jpeg, record.to_json()), "broken": broken_samples(record, jpeg)[name]})
    if name.startswith("bad_sample"):  # without a manifest the index reads the head of each JSON: such a tar is skipped whole
        with pytest.raises(ShardError, match="key broken"):
            make_dataset([path])
        return
    write_shard(tmp_path / "b.tar", [(other, other_jpeg)])
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset([path, tmp_path / "b.tar"])
        sample_in_its_place = dataset[1]
    reason = name.rstrip("_23") if name[-1].isdigit() else name
    assert (sample_in_its_place.key, sample_in_its_place.skipped) == ("sa_000007", (reason,))
    (message,) = [r.getMessage() for r in caplog.records]
    assert reason in message
    assert str(path) in message
    assert "key broken" in message


def test_too_many_broken_samples_in_a_row_raise(tmp_path: Path, sample: MakeSample) -> None:
    record, jpeg = sample(0)
    write_shard(tmp_path / "a.tar", [(sample(i)[0], b"no jpeg") for i in range(5)] + [(sample(9)[0], jpeg)])
    assert len(make_dataset([tmp_path / "a.tar"])[0].skipped) == 5
    with pytest.raises(ShardError, match=r"3 samples in a row are unusable \(undecodable_jpeg 3 x\)"):
        make_dataset([tmp_path / "a.tar"], max_consecutive_skips=3)[0]
    assert record.masks


@pytest.mark.parametrize("with_manifest", [True, False])
def test_skips_a_truncated_shard_unless_strict(
    with_manifest: bool, tmp_path: Path, sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    for name, index in (("a", 0), ("b", 1)):
        write_shard(tmp_path / f"{name}.tar", [sample(index)])
    truncated = tmp_path / "a.tar"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    if not with_manifest:
        (tmp_path / "a.manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset([truncated, tmp_path / "b.tar"])
    assert [dataset[i].key for i in range(2)] == ["sa_000001"] * 2
    assert len(dataset.shards.skipped_reasons) == 1
    messages = [r.getMessage() for r in caplog.records]
    assert str(truncated) in messages[0]
    assert messages[1].startswith("skipped 1 of 2 shards")
    with pytest.raises(ShardError, match="truncated"):
        make_dataset([truncated, tmp_path / "b.tar"], strict=True)
    with pytest.raises(ShardError, match="none of the 1 shards can be read"):
        make_dataset([truncated])


def test_skips_samples_of_a_shard_deleted_during_the_run(tmp_path: Path, sample: MakeSample) -> None:
    for name, index in (("a", 0), ("b", 1)):
        write_shard(tmp_path / f"{name}.tar", [sample(index)])
    dataset = make_dataset([tmp_path / "a.tar", tmp_path / "b.tar"])
    (tmp_path / "a.tar").unlink()
    assert (dataset[0].key, dataset[0].skipped) == ("sa_000001", ("bad_sample",))


def test_source_weights_set_how_often_samples_come(tmp_path: Path, sample: MakeSample) -> None:
    for name, index in (("manual", 0), ("automatic", 1)):
        write_shard(tmp_path / name / "sa_000000.tar", [sample(index)])
    sources = [{"shards": str(tmp_path / "manual"), "weight": 10}, {"shards": [str(tmp_path / "automatic" / "*.tar")]}]
    module = ShardDataModule(sources=sources, image_size=32)
    keys = [module.train_set.entry(position).key for position in range(22)]
    assert (len(module.train_set), keys.count("sa_000000"), keys.count("sa_000001")) == (11, 20, 2)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"shards": "{}", "weight": -1}], "a number from 0 to 1e6"),
        ([{"shards": "{}", "weight": "ten"}], "a number from 0 to 1e6"),
        ([{"shards": "{}", "wieght": 1}], "expected shards, which must not be empty, and weight"),
        ([{"weight": 1}], "expected shards, which must not be empty, and weight"),
        ([{"shards": "{}"}, {"shards": "{}"}], "is in two sources"),
        ([{"shards": "{}", "weight": 0}], "every source has weight 0"),
    ],
)
def test_rejects_invalid_sources(tmp_path: Path, sample: MakeSample, sources: list[dict[str, object]], message: str) -> None:
    write_shard(tmp_path / "a.tar", [sample(0)])
    with_folder = [{k: str(tmp_path) if v == "{}" else v for k, v in source.items()} for source in sources]
    with pytest.raises(ConfigError, match=message):
        expand_sources(with_folder)


def test_rejects_both_shards_and_sources(tmp_path: Path, sample: MakeSample) -> None:
    write_shard(tmp_path / "a.tar", [sample(0)])
    with pytest.raises(ConfigError, match=r"data\.shards and data\.sources are both set"):
        ShardDataModule(shards=str(tmp_path), sources=[{"shards": str(tmp_path)}], image_size=32)


def test_target_record_parser_agrees_with_the_schema(sample: MakeSample) -> None:
    record, _ = sample(3)
    assert parse_target_record(record.to_json(), key=record.key) == TargetRecord.from_image_record(record)
    for change in ({"area": 3.5}, {"surprise": 1}, {"predicted_iou": None}, {"id": 1 << 70}, {"area": True}):
        data = modified_json(record, lambda d, change=change: d["annotations"][0].update(change))  # type: ignore[misc]
        with pytest.raises(ShardError, match=r"annotations\[0\]\." + next(iter(change))):
            parse_target_record(data, key=record.key)
    data = modified_json(record, lambda d: d["annotations"][0].update(bbox=[1, 2, 3]))
    assert parse_target_record(data, key=record.key) == TargetRecord.from_image_record(record), "boxes are not parsed"
