from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from pycocotools import mask as coco_mask

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards import iterate_samples, load_manifest, manifest_path, write_shard

Samples = list[tuple[ImageRecord, bytes]]
SA1B_KEYS = {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_equal_samples_give_equal_bytes(tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first" / "a.tar", tmp_path / "second" / "a.tar"
    write_shard(first, tiny_samples, provenance={"stage": "import"})
    monkeypatch.setattr("time.time", lambda: 4e9)  # another day
    monkeypatch.setattr("os.getpid", lambda: 99999)  # in another process
    write_shard(second, iter(tiny_samples), provenance={"stage": "import"})
    assert first.read_bytes() == second.read_bytes()
    assert manifest_path(first).read_bytes() == manifest_path(second).read_bytes()


def test_nothing_else_is_left_in_the_folder(tiny_shard: Path) -> None:
    assert names(tiny_shard.parent) == ["sa_000000.manifest.json", "sa_000000.masks.parquet", "sa_000000.tar"]


def test_returned_manifest_is_the_one_on_disk(tmp_path: Path, tiny_samples: Samples) -> None:
    manifest = write_shard(tmp_path / "a.tar", tiny_samples, skipped={"x.png": "too_small"}, counts={"clicks": 3.0})
    assert load_manifest(tmp_path / "a.tar") == manifest
    assert (manifest.skipped, manifest.counts) == ({"x.png": "too_small"}, {"clicks": 3.0})


def test_a_generator_may_fill_the_counts_while_it_runs(tmp_path: Path, tiny_samples: Samples) -> None:
    skipped: dict[str, str] = {}

    def samples() -> Iterator[tuple[ImageRecord, bytes]]:
        yield tiny_samples[0]
        skipped["late.png"] = "undecodable_jpeg"

    assert write_shard(tmp_path / "a.tar", samples(), skipped=skipped).skipped == {"late.png": "undecodable_jpeg"}


@pytest.mark.parametrize("fail_after", [0, 1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_nothing(
    tmp_path: Path, tiny_samples: Samples, fail_after: int, error: type[BaseException]
) -> None:
    def samples() -> Iterator[tuple[ImageRecord, bytes]]:
        yield from tiny_samples[:fail_after]
        raise error

    with pytest.raises(error):
        write_shard(tmp_path / "a.tar", samples())
    assert names(tmp_path) == []


def test_an_exception_leaves_an_older_shard_as_it_was(tiny_shard: Path) -> None:
    before = {name: (tiny_shard.parent / name).read_bytes() for name in names(tiny_shard.parent)}
    with pytest.raises(ZeroDivisionError):
        write_shard(tiny_shard, (1 // 0 for _ in range(1)))
    assert {name: (tiny_shard.parent / name).read_bytes() for name in names(tiny_shard.parent)} == before


def test_a_crash_before_the_manifest_leaves_a_shard_that_is_not_done(
    tiny_shard: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of the older shard must not vouch for the new tar."""
    monkeypatch.setattr("sam_train.shards.writer.atomic_write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_shard(tiny_shard, tiny_samples[:1])
    assert names(tiny_shard.parent) == ["sa_000000.tar"]


def test_a_key_written_twice_is_refused(tmp_path: Path, tiny_samples: Samples) -> None:
    with pytest.raises(ShardError, match="this key was written before") as caught:
        write_shard(tmp_path / "a.tar", [tiny_samples[0], tiny_samples[1], tiny_samples[0]])
    assert (caught.value.shard, caught.value.key) == ("a.tar", "sa_000000")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"area": 3.0}, "annotations[0].area"),
        ({"predicted_iou": float("nan")}, "annotations[0].predicted_iou"),
        ({"bbox": [0.0, 0.0, 1.0]}, "annotations[0].bbox"),
    ],
)
def test_what_no_reader_would_take_is_not_written(
    tmp_path: Path, tiny_samples: Samples, change: dict[str, Any], field: str
) -> None:
    record, jpeg = tiny_samples[0]
    broken = replace(record, masks=[_unchecked(record.masks[0], change)])
    with pytest.raises(ShardError) as caught:
        write_shard(tmp_path / "a.tar", [(broken, jpeg)])
    assert (caught.value.shard, caught.value.key, caught.value.field) == ("a.tar", "sa_000000", field)
    assert names(tmp_path) == []


def _unchecked(mask: MaskRecord, change: dict[str, Any]) -> MaskRecord:
    """A record with values that the constructor, which is type-checked in tests, would stop before the writer can."""
    changed = replace(mask)
    for name, value in change.items():
        object.__setattr__(changed, name, value)
    return changed


def test_no_samples_make_an_empty_shard(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.tar", []).keys == []
    assert list(iterate_samples([tmp_path / "a.tar"])) == []


def test_opens_with_nothing_but_tarfile_json_and_pycocotools(
    tmp_path: Path, sample: Callable[..., tuple[ImageRecord, bytes]]
) -> None:
    record, jpeg = sample(0)
    provenance = Provenance(stage="import", checkpoint="", annotator="test", config="")
    record = replace(record, masks=[record.masks[0], replace(record.masks[1], provenance=provenance)])
    write_shard(tmp_path / "a.tar", [(record, jpeg), sample(1)])
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["sa_000000.jpg", "sa_000000.json", "sa_000001.jpg", "sa_000001.json"]
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
        assert tar.extractfile("sa_000000.jpg").read() == jpeg
        document = json.load(tar.extractfile("sa_000000.json"))
    assert document["image"] == {"image_id": 0, "width": 64, "height": 48, "file_name": "sa_000000.jpg"}
    assert [set(annotation) for annotation in document["annotations"]] == [SA1B_KEYS, SA1B_KEYS | {"provenance"}]
    for annotation in document["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (48, 64)
        assert mask.sum() == annotation["area"] > 0
        assert coco_mask.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves the closing to the collector
def test_opens_with_webdataset(tiny_shard: Path, tiny_samples: Samples) -> None:
    found = list(wds.WebDataset(str(tiny_shard), shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "json"))
    assert [key for key, _, _ in found] == ["sa_000000", "sa_000001", "sa_000002"]
    for (_, image, document), (record, _) in zip(found, tiny_samples, strict=True):
        assert image.shape == (record.height, record.width, 3)
        assert len(document["annotations"]) == len(record.masks)


def test_masks_lie_where_the_picture_is_bright(tiny_shard: Path) -> None:
    """The one end-to-end look at orientation: RLE is column-major, pictures are row-major."""
    with tarfile.open(tiny_shard) as tar:
        from PIL import Image

        image = np.asarray(Image.open(io.BytesIO(tar.extractfile("sa_000001.jpg").read())).convert("L"), dtype=float)
        (annotation,) = json.load(tar.extractfile("sa_000001.json"))["annotations"]
    mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
    assert image[mask].mean() > image[~mask].mean() + 60
