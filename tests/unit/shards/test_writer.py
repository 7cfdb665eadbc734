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


def test_leaves_no_other_file_in_the_folder(tiny_shard: Path) -> None:
    assert names(tiny_shard.parent) == ["sa_000000.manifest.json", "sa_000000.masks.parquet", "sa_000000.tar"]


def test_returned_manifest_is_the_one_on_disk(tmp_path: Path, tiny_samples: Samples) -> None:
    manifest = write_shard(tmp_path / "a.tar", tiny_samples, skipped={"x.png": "too_small"}, counts={"clicks": 3.0})
    assert load_manifest(tmp_path / "a.tar") == manifest
    assert (manifest.skipped, manifest.counts) == ({"x.png": "too_small"}, {"clicks": 3.0})


def test_generator_may_fill_the_counts(tmp_path: Path, tiny_samples: Samples) -> None:
    skipped: dict[str, str] = {}

    def samples() -> Iterator[tuple[ImageRecord, bytes]]:
        yield tiny_samples[0]
        skipped["late.png"] = "undecodable_jpeg"

    assert write_shard(tmp_path / "a.tar", samples(), skipped=skipped).skipped == {"late.png": "undecodable_jpeg"}


@pytest.mark.parametrize("fail_after", [0, 1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_leaves_no_file(tmp_path: Path, tiny_samples: Samples, fail_after: int, error: type[BaseException]) -> None:
    def samples() -> Iterator[tuple[ImageRecord, bytes]]:
        yield from tiny_samples[:fail_after]
        raise error

    with pytest.raises(error):
        write_shard(tmp_path / "a.tar", samples())
    assert names(tmp_path) == []


def test_exception_keeps_an_older_shard(tiny_shard: Path) -> None:
    before = {name: (tiny_shard.parent / name).read_bytes() for name in names(tiny_shard.parent)}
    with pytest.raises(ZeroDivisionError):
        write_shard(tiny_shard, (1 // 0 for _ in range(1)))
    assert {name: (tiny_shard.parent / name).read_bytes() for name in names(tiny_shard.parent)} == before


def test_crash_before_the_manifest_leaves_an_incomplete_shard(
    tiny_shard: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of the older shard must not mark the new tar as complete."""
    monkeypatch.setattr("sam_train.shards.writer.atomic_write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_shard(tiny_shard, tiny_samples[:1])
    assert names(tiny_shard.parent) == ["sa_000000.tar"]


def test_rejects_a_duplicate_key(tmp_path: Path, tiny_samples: Samples) -> None:
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
def test_rejects_a_record_that_no_reader_accepts(
    tmp_path: Path, tiny_samples: Samples, change: dict[str, Any], field: str
) -> None:
    record, jpeg = tiny_samples[0]
    broken = replace(record, masks=[_unchecked(record.masks[0], change)])
    with pytest.raises(ShardError) as caught:
        write_shard(tmp_path / "a.tar", [(broken, jpeg)])
    assert (caught.value.shard, caught.value.key, caught.value.field) == ("a.tar", "sa_000000", field)
    assert names(tmp_path) == []


def _unchecked(mask: MaskRecord, change: dict[str, Any]) -> MaskRecord:
    """Return a record with invalid values, which the constructor, type-checked in tests, would reject before the writer."""
    changed = replace(mask)
    for name, value in change.items():
        object.__setattr__(changed, name, value)
    return changed


def test_writes_an_empty_shard_without_samples(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.tar", []).keys == []
    assert list(iterate_samples([tmp_path / "a.tar"])) == []


def test_tarfile_json_and_pycocotools_read_a_shard(tmp_path: Path, sample: Callable[..., tuple[ImageRecord, bytes]]) -> None:
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


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its files
def test_webdataset_reads_a_shard(tiny_shard: Path, tiny_samples: Samples) -> None:
    found = list(wds.WebDataset(str(tiny_shard), shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "json"))
    assert [key for key, _, _ in found] == ["sa_000000", "sa_000001", "sa_000002"]
    for (_, image, document), (record, _) in zip(found, tiny_samples, strict=True):
        assert image.shape == (record.height, record.width, 3)
        assert len(document["annotations"]) == len(record.masks)


def test_masks_cover_the_bright_pixels_of_the_image(tiny_shard: Path) -> None:
    """End-to-end check of the axis order: RLE is column-major, images are row-major."""
    with tarfile.open(tiny_shard) as tar:
        from PIL import Image

        image = np.asarray(Image.open(io.BytesIO(tar.extractfile("sa_000001.jpg").read())).convert("L"), dtype=float)
        (annotation,) = json.load(tar.extractfile("sa_000001.json"))["annotations"]
    mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
    assert image[mask].mean() > image[~mask].mean() + 60
