"""Import of label maps, the split, resumed imports and the options of the command."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_train.cli.commands import data as main
from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards import Sample, decode_jpeg, expand_shards, iterate_samples, load_manifest
from sam_train.shards.exporters import EXPORTERS
from sam_train.shards.importers import IMPORTERS, import_label_maps
from sam_train.shards.importers.label_maps import read_label_map
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.options import add_options
from sam_train.shards.split_hash import is_held_out

NUCLEI = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "nuclei"


def label_map(number: int) -> np.ndarray:
    """Return a map of 20 x 30 with instance 1 (a square with a hole), 300 + number (one pixel) and 700 (two parts)."""
    ids = np.zeros((20, 30), np.uint16)
    ids[2:9, 3:10] = 1
    ids[4:6, 5:7] = 0
    ids[15, 20] = 300 + number
    ids[0, 0] = ids[19, 29] = 700
    return ids


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(7):
        pixels = np.full((20, 30, 4), [10 * number, 60, 90, 255], np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"cell_{number}.png")
        Image.fromarray(label_map(number)).save(tmp_path / "labels" / f"cell_{number}.png")
    return tmp_path


def read(folder: Path) -> dict[str, Sample]:
    return {sample.record.key: sample for sample in iterate_samples(expand_shards(str(folder)))}


def run(data_set: Path, *more: str) -> None:
    main(
        [
            "import",
            "label_maps",
            "--images",
            f"{data_set}/images",
            "--labels",
            f"{data_set}/labels",
            "--out",
            f"{data_set}/out",
            *more,
        ]
    )


def masks_of(record: ImageRecord) -> dict[int, np.ndarray]:
    return {m.id: decode_rle(m.segmentation, height=record.height, width=record.width) for m in record.masks}


def test_every_instance_becomes_a_mask(data_set: Path) -> None:
    samples = list(import_label_maps(data_set / "images", data_set / "labels"))
    assert [record.key for record, _ in samples] == [f"cell_{n}" for n in range(7)]
    record, jpeg = samples[3]
    assert (record.height, record.width) == (20, 30) == decode_jpeg(jpeg).shape[:2]
    np.testing.assert_allclose(decode_jpeg(jpeg)[10, 10], [30, 60, 90], atol=3)
    masks = masks_of(record)
    assert set(masks) == {1, 303, 700}
    for instance, mask in masks.items():
        np.testing.assert_array_equal(mask, label_map(3) == instance)
    square = record.masks[0]
    assert (square.bbox, square.area, square.crop_box) == ([3, 2, 7, 7], 45, [0, 0, 30, 20])
    assert (square.predicted_iou, square.stability_score, square.point_coords) == (1.0, 1.0, [])
    assert square.provenance is not None
    assert (square.provenance.stage, square.provenance.annotator) == ("import", "label_maps")
    assert ImageRecord.from_json(record.to_json(), key=record.key) == record


def test_drops_and_counts_small_instances(data_set: Path) -> None:
    counts: Counter[str] = Counter()
    samples = list(import_label_maps(data_set / "images", data_set / "labels", min_area=2, report=ImportReport(counts=counts)))
    assert [{mask.id for mask in record.masks} for record, _ in samples] == [{1, 700}] * 7
    assert counts == {"below_min_area": 7}


def test_keeps_an_image_without_instances(data_set: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(data_set / "labels" / "cell_0.png")
    record, _ = next(import_label_maps(data_set / "images", data_set / "labels"))
    assert record.masks == []


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_reads_label_maps_of_every_mode(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 1] * 8] * 8 if mode == "1" else [[0, 7] * 8] * 8, np.uint16)
    image = Image.fromarray(ids.astype(bool) if mode == "1" else ids if mode == "I;16" else ids.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0] + [200, 0, 0] * 255)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), ids)


def break_missing_label(data_set: Path) -> None:
    (data_set / "labels" / "cell_4.png").unlink()


def break_missing_picture(data_set: Path) -> None:
    (data_set / "images" / "cell_4.png").unlink()


def break_size(data_set: Path) -> None:
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(data_set / "labels" / "cell_4.png")


def break_colour_label(data_set: Path) -> None:
    Image.fromarray(np.arange(1800).astype(np.uint8).reshape(20, 30, 3)).save(data_set / "labels" / "cell_4.png")


def break_picture(data_set: Path) -> None:
    (data_set / "images" / "cell_4.png").write_bytes(b"")


def break_label(data_set: Path) -> None:
    whole = (data_set / "labels" / "cell_4.png").read_bytes()
    (data_set / "labels" / "cell_4.png").write_bytes(whole[:-40])


def break_twice(data_set: Path) -> None:
    Image.new("RGB", (30, 20)).save(data_set / "images" / "cell_4.jpg")


@pytest.mark.parametrize(
    "broken",
    [break_missing_label, break_missing_picture, break_size, break_colour_label, break_picture, break_label, break_twice],
)
def test_error_names_the_wrong_file(data_set: Path, broken: object, capsys: pytest.CaptureFixture[str]) -> None:
    broken(data_set)  # type: ignore[operator]
    with pytest.raises(ShardError, match="cell_4"):
        list(import_label_maps(data_set / "images", data_set / "labels"))
    with pytest.raises(SystemExit) as caught:
        run(data_set, "--images-per-shard", "100")
    assert caught.value.code == 1
    assert "cell_4" in capsys.readouterr().err
    assert not list(data_set.glob("out/**/*.*"))


def test_command_writes_shards(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data_set, "--images-per-shard", "3", "--min-area", "2")
    shards = expand_shards(str(data_set / "out"))
    assert [shard.name for shard in shards] == ["sa_000000.tar", "sa_000001.tar", "sa_000002.tar"]
    manifests = [load_manifest(shard) for shard in shards]
    assert [len(manifest.keys) for manifest in manifests] == [3, 3, 1]
    assert [manifest.counts for manifest in manifests] == [{"below_min_area": 3}, {"below_min_area": 3}, {"below_min_area": 1}]
    assert manifests[0].provenance == {"stage": "import", "importer": "label_maps", "options": {"min_area": 2}}
    assert "7 images, 14 masks, 3 shards" in capsys.readouterr().out
    assert str(data_set).encode() not in b"".join(path.read_bytes() for path in (data_set / "out").iterdir())


def test_second_run_resumes_an_interrupted_import(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data_set, "--images-per-shard", "3")
    out = data_set / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "sa_000001.manifest.json").unlink()
    (out / "sa_000002.tar").unlink()
    (out / "sa_000002.manifest.json").unlink()
    kept = (out / "sa_000000.tar").stat().st_mtime_ns
    run(data_set, "--images-per-shard", "3")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "sa_000000.tar").stat().st_mtime_ns == kept
    assert "3 shards (1 already existed)" in capsys.readouterr().out


@pytest.mark.parametrize("more", [("--images-per-shard", "4"), ("--min-area", "2"), ("--images-per-shard", "100")])
def test_rejects_shards_of_another_import(data_set: Path, more: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run(data_set, "--images-per-shard", "3")
    with pytest.raises(SystemExit):
        run(data_set, "--images-per-shard", "3", *more)
    assert "empty --out" in capsys.readouterr().err


def test_rejects_left_over_shards(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data_set, "--images-per-shard", "3")
    for folder in ("images", "labels"):
        (data_set / folder / "cell_6.png").unlink()
    with pytest.raises(SystemExit):
        run(data_set, "--images-per-shard", "3")
    assert "sa_000002.tar" in capsys.readouterr().err


def test_holdout_splits_by_key(data_set: Path) -> None:
    run(data_set, "--holdout", "0.4", "--seed", "3")
    train, heldout = read(data_set / "out" / "train"), read(data_set / "out" / "heldout")
    assert train
    assert heldout
    assert sorted([*train, *heldout]) == [f"cell_{n}" for n in range(7)]
    assert all(is_held_out(key, holdout=0.4, seed=3) for key in heldout)
    assert not any(is_held_out(key, holdout=0.4, seed=3) for key in train)
    assert load_manifest(data_set / "out" / "train" / "sa_000000.tar").provenance["split"] == "train"


def test_rejects_a_holdout_without_images(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fraction, message in (("1e-9", "no image fell into heldout"), ("1", "expected the fraction of held-out images")):
        with pytest.raises(SystemExit):
            run(data_set, "--holdout", fraction)
        assert message in capsys.readouterr().err


def test_larger_holdout_contains_the_smaller_one() -> None:
    keys = [f"image_{n}" for n in range(4000)]
    sides = [[is_held_out(key, holdout=0.2, seed=seed) for key in keys] for seed in (0, 1)]
    for side in sides:
        assert 0.17 < np.mean(side) < 0.23
    assert 0.25 < np.mean(np.array(sides[0]) != np.array(sides[1])) < 0.4
    bigger = [is_held_out(key, holdout=0.5, seed=0) for key in keys]
    assert all(big or not small for small, big in zip(sides[0], bigger, strict=True)), "a larger holdout contains the smaller"


def test_help_lists_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["import", "--help"], ["import", "label_maps", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in IMPORTERS)
    assert "--min-area" in shown


def test_imports_real_nuclei(tmp_path: Path) -> None:
    if not NUCLEI.is_dir():
        pytest.skip("the nuclei data set is not in the folder `shared` beside the repository")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for path in sorted((NUCLEI / folder).glob("*.png"))[:12]:
            (tmp_path / folder / path.name).symlink_to(path.resolve())
    run(tmp_path, "--images-per-shard", "5", "--holdout", "0.3")
    samples = {**read(tmp_path / "out" / "train"), **read(tmp_path / "out" / "heldout")}
    assert len(samples) == 12
    for key, sample in samples.items():
        ids = read_label_map(NUCLEI / "labels" / f"{key}.png")
        rebuilt = np.zeros_like(ids)
        for instance, mask in masks_of(sample.record).items():
            rebuilt[mask] = instance
        np.testing.assert_array_equal(rebuilt, ids)
        with Image.open(NUCLEI / "images" / f"{key}.png") as image:
            difference = decode_jpeg(sample.jpeg).astype(int) - np.asarray(image.convert("RGB"))
        assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import bsds500 --images a --labels b --out c --person 1", "--person was renamed to --annotator"),
        ("export coco --shards a --out b --form polygons", "--form was renamed to --mask-format"),
        ("import coco --images a --annotations b --out c --missing skip", "skip: renamed to leave_out"),
        ("import sa1b --source a --out c --unpaired skip", "--unpaired was renamed to --missing"),
    ],
)
def test_rejects_an_option_of_an_earlier_version_with_its_new_name(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*IMPORTERS, *EXPORTERS])
def test_every_option_has_a_help_text(kind: str) -> None:
    function: Callable[..., object] = IMPORTERS.get(kind) or EXPORTERS[kind]
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser, function, exclude=("counts", "samples", "folder"))
    texts = [action.help or "" for action in parser._actions if action.help != argparse.SUPPRESS]
    assert all(text.endswith(".") for text in texts), texts
