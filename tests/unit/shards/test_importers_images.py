"""Import of data sets with label files: binary masks, YOLO, panoptic maps, BSDS500; and the error of every kind for no data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sam_train.cli.commands import data as main
from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.binary_masks import import_binary_masks
from sam_train.shards.importers.bsds500 import import_bsds500, read_bsds_segmentations
from sam_train.shards.importers.panoptic import import_panoptic
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.importers.yolo import import_yolo

HEIGHT, WIDTH = 20, 30


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def save(path: Path, values: np.ndarray | None = None) -> None:
    """Write a PNG or JPEG of `values`, by default a gray image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if values is None else values).save(path)


def masks_of(record: ImageRecord) -> dict[int, np.ndarray]:
    return {m.id: decode_rle(m.segmentation, height=record.height, width=record.width) for m in record.masks}


def records(kind: str, **options: Any) -> dict[str, ImageRecord]:
    return {record.key: record for record, _ in IMPORTERS[kind](**options)}


NAMES = {
    "folders": ("masks/a/0.png", "masks/a/1.png", "masks/b_1/x.png"),
    "prefixes": ("masks/a_0.png", "masks/a_1.png", "masks/b_1_x.png"),
    "one each": ("masks/a_0.png", "masks/a_1.png", "masks/b_1.png"),
}


@pytest.mark.parametrize("layout", NAMES)
def test_imports_binary_masks_from_two_folders(tmp_path: Path, layout: str) -> None:
    masks = (box(1, 1, 5, 5), box(3, 3, 9, 9), box(0, 0, 20, 30))
    for stem in ("a", "b_1"):
        save(tmp_path / "images" / f"{stem}.jpg")
    for name, mask in zip(NAMES[layout], masks, strict=True):
        save(tmp_path / name, (mask * 255).astype(np.uint8))
    found = records("binary_masks", images=tmp_path / "images", masks=tmp_path / "masks")
    assert list(found) == ["a", "b_1"]
    for record, expected in zip(found.values(), (masks[:2], masks[2:]), strict=True):
        for (number, mask), wanted in zip(masks_of(record).items(), enumerate(expected, start=1), strict=True):
            assert number == wanted[0]
            np.testing.assert_array_equal(mask, wanted[1])


def test_imports_binary_masks_in_the_format_of_dsb(tmp_path: Path) -> None:
    for stem in ("0a", "1b"):
        save(tmp_path / stem / "images" / f"{stem}.png")
        for number in range(3):
            save(tmp_path / stem / "masks" / f"m{number}.png", box(number, 0, number + 2, 9).astype(np.uint8) * 255)
    save(tmp_path / "1b" / "masks" / "m1.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    counts: Counter[str] = Counter()
    found = [record for record, _ in import_binary_masks(tmp_path, report=ImportReport(counts=counts))]
    assert [(record.key, [mask.id for mask in record.masks]) for record in found] == [("0a", [1, 2, 3]), ("1b", [1, 3])]
    assert counts == {"mask_without_pixels": 1}


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a_0.png", box(1, 1, 5, 5).astype(np.uint8))
    return tmp_path


WRONG_BINARY: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (lambda p: save(p / "masks" / "a_0.png", np.zeros((30, 20), np.uint8)), "a_0.png is 20 x 30"),
    "values": (lambda p: save(p / "masks" / "a_0.png", np.arange(600, dtype=np.uint16).reshape(20, 30)), "label_maps"),
    "colour": (lambda p: save(p / "masks" / "a_0.png", rgb(IDS)), "a_0.png has colours"),
    "no_picture": (lambda p: save(p / "masks" / "c_0.png", box(0, 0, 1, 1)), "c_0.png has no image"),
    "no_masks": (lambda p: save(p / "images" / "c.jpg"), "c.jpg has no masks"),
    "ambiguous": (lambda p: save(p / "images" / "a_0.jpg"), "may belong to a_0 and a"),
    "not_a_picture": (lambda p: (p / "images" / "a.jpg").write_bytes(b"no"), "a.jpg"),
    "not_a_mask": (lambda p: (p / "masks" / "a_0.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "a_0.png"),
}


@pytest.mark.parametrize("wrong", WRONG_BINARY)
def test_error_names_the_wrong_binary_mask(binary: Path, wrong: str) -> None:
    spoil, message = WRONG_BINARY[wrong]
    spoil(binary)
    with pytest.raises(ShardError, match=message):
        list(import_binary_masks(binary / "images", binary / "masks"))


def test_empty_mask_folder_means_an_image_without_masks(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    ((record, _),) = import_binary_masks(tmp_path / "images", tmp_path / "masks")
    assert record.masks == []


def yolo(tmp_path: Path, text: str) -> tuple[list[ImageRecord], Counter[str]]:
    for name in ("a", "sub/b"):
        save(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "a.txt").write_text(text)
    counts: Counter[str] = Counter()
    return [
        record for record, _ in import_yolo(tmp_path / "images", tmp_path / "labels", report=ImportReport(counts=counts))
    ], counts


def test_imports_yolo_lines(tmp_path: Path) -> None:
    square, detection, over_the_border = (
        "0 0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6",
        "7.0 0.5 0.5 0.2 0.2",
        "1 0.9 0.9 1.2 0.9 1.2 1 0.9 1",
    )
    text = "\n".join([square, "", detection, over_the_border, "2 0.5 0.5 0.5001 0.5 0.5 0.5001", ""])
    (first, second), counts = yolo(tmp_path, text)
    assert second.masks == []
    assert second.key.startswith("sub_b_")
    masks = masks_of(first)
    assert set(masks) == {1, 4}
    np.testing.assert_array_equal(masks[1], box(2, 3, 12, 12))
    np.testing.assert_array_equal(masks[4], box(18, 27, 20, 30))
    assert counts == {
        "image_without_labels": 1,
        "box_without_polygon": 1,
        "polygon_clipped": 1,
        "polygon_without_pixels": 1,
        "mask_without_pixels": 1,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 1 2 x 4", "expected a class and numbers"),
        ("dog 0.1 0.1 0.2 0.2 0.3 0.3", "beginning with 'dog'"),
        ("0 0.1 0.1 0.2 0.2 0.3", "expected 'class x y x y"),
        ("0", "expected 'class x y x y"),
        ("0 12 40 90 40 90 80", "as fractions of width and height"),
        ("0 nan 0.1 0.2 0.2 0.3 0.3", "as fractions of width and height"),
        ("0 1e999 0.1 0.2 0.2 0.3 0.3", "as fractions of width and height"),
        ("\u00e9", "not an ASCII text file"),
    ],
)
def test_error_names_the_wrong_yolo_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        yolo(tmp_path, f"0 0.1 0.1 0.4 0.1 0.4 0.6\n{line}\n")
    assert "a.txt" in str(caught.value)


def test_rejects_yolo_labels_without_an_image(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "c.txt").write_text("")
    with pytest.raises(ShardError, match=r"c\.txt has no image"):
        yolo(tmp_path, "")


def test_imports_real_yolo_labels(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "coco128_seg"
    if not folder.is_dir():
        pytest.skip("COCO-128 is not in the folder `shared` beside the repository")
    counts: Counter[str] = Counter()
    found = [record for record, _ in import_yolo(folder / "images", folder / "labels", report=ImportReport(counts=counts))]
    lines = sum(len(path.read_text().splitlines()) for path in (folder / "labels").glob("*.txt"))
    assert (len(found), sum(len(record.masks) for record in found), dict(counts)) == (62, lines, {})


def rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)


IDS = np.zeros((HEIGHT, WIDTH), np.int64)
IDS[:5], IDS[5:9, :9], IDS[9:, 20:], IDS[12, 3] = 7, 300, 70_000, 16_000_000

SEGMENTS = {
    "categories": [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "a.png",
            "segments_info": [
                {"id": 7, "category_id": 2, "iscrowd": 0},
                {"id": 300, "category_id": 1, "iscrowd": 0},
                {"id": 70_000, "category_id": 1, "iscrowd": 1},
                {"id": 16_000_000, "category_id": 1, "iscrowd": 0},
            ],
        }
    ],
}


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "labels" / "a.png", rgb(IDS))
    (tmp_path / "segments.json").write_text(json.dumps(SEGMENTS))
    return tmp_path


def panoptic_masks(folder: Path, **options: Any) -> tuple[dict[int, np.ndarray], Counter[str]]:
    counts: Counter[str] = Counter()
    ((record, _),) = import_panoptic(folder / "images", folder / "labels", report=ImportReport(counts=counts), **options)
    return masks_of(record), counts


def test_panoptic_colours_become_ids(panoptic: Path) -> None:
    masks, counts = panoptic_masks(panoptic)
    assert set(masks) == {7, 300, 70_000, 16_000_000}
    for number, mask in masks.items():
        np.testing.assert_array_equal(mask, number == IDS)
    assert counts == {}
    assert panoptic_masks(panoptic, min_area=2)[1] == {"below_min_area": 1}


def test_panoptic_json_selects_segments(panoptic: Path) -> None:
    masks, counts = panoptic_masks(panoptic, segments=panoptic / "segments.json", drop_crowd=True)
    assert set(masks) == {300, 16_000_000}
    assert counts == {"stuff": 1, "crowd": 1}
    masks, counts = panoptic_masks(panoptic, segments=panoptic / "segments.json", keep_stuff=True)
    assert set(masks) == {7, 300, 70_000, 16_000_000}
    assert counts == {}


def test_imports_cityscapes(tmp_path: Path) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[0], ids[1:5], ids[5:9, :9], ids[5:9, 9:], ids[12:] = 3, 7, 26_000, 26_001, 24
    save(tmp_path / "images" / "aachen" / "aachen_000000_000019_leftImg8bit.png")
    stem = tmp_path / "labels" / "aachen" / "aachen_000000_000019_gtFine"
    save(stem.with_name(stem.name + "_instanceIds.png"), ids)
    save(stem.with_name(stem.name + "_labelIds.png"), (ids // 1000).astype(np.uint8))
    suffixes = {"image_suffix": "_leftImg8bit", "label_suffix": "_gtFine_instanceIds"}
    masks, counts = panoptic_masks(tmp_path, **suffixes)
    assert set(masks) == {26_000, 26_001}
    assert counts == {"stuff": 2, "other_file": 1}
    masks, counts = panoptic_masks(tmp_path, keep_stuff=True, **suffixes)
    assert set(masks) == {7, 24, 26_000, 26_001}
    assert counts == {"other_file": 1}


def listed(**changes: object) -> Callable[[Path], object]:
    entry = {**SEGMENTS["annotations"][0], **changes}  # type: ignore[dict-item]
    return lambda p: (p / "segments.json").write_text(json.dumps({**SEGMENTS, "annotations": [entry]}))


WRONG_PANOPTIC: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (lambda p: save(p / "labels" / "a.png", rgb(IDS.T)), "a.png is 20 x 30"),
    "gray": (lambda p: save(p / "labels" / "a.png", np.zeros((20, 30), np.uint8)), "label_maps"),
    "jpeg": (lambda p: save(p / "images" / "b.jpg"), "b.jpg has no panoptic map"),
    "no_picture": (lambda p: save(p / "labels" / "b.png", rgb(IDS)), "b.png has no image"),
    "climbing": (listed(file_name="../../a.png"), "leads out of the folder"),
    "absolute": (listed(file_name="/a.png"), "leads out of the folder"),
    "not_listed": (listed(file_name="b.png"), "does not list a.png"),
    "unknown_id": (listed(segments_info=SEGMENTS["annotations"][0]["segments_info"][:3]), "has the id 16000000"),  # type: ignore[index]
    "no_segments": (listed(segments_info=None), "expected 'segments_info'"),
    "no_category": (listed(segments_info=[{"id": 7}]), "as 'category_id'"),
    "not_json": (lambda p: (p / "segments.json").write_text("{"), "segments.json is not JSON"),
    "deep_json": (lambda p: (p / "segments.json").write_text("[" * 200_000), "segments.json is not JSON"),
    "other_json": (lambda p: (p / "segments.json").write_text("[]"), "expected an object with"),
}


@pytest.mark.parametrize("wrong", WRONG_PANOPTIC)
def test_error_names_the_wrong_panoptic_file(panoptic: Path, wrong: str) -> None:
    spoil, message = WRONG_PANOPTIC[wrong]
    spoil(panoptic)
    with pytest.raises(ShardError, match=message):
        panoptic_masks(panoptic, segments=panoptic / "segments.json")


def save_truth(path: Path, people: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = np.empty((1, len(people)), object)
    for number, ids in enumerate(people):
        truth[0, number] = {"Segmentation": ids, "Boundaries": (ids > 1).astype(np.uint8)}
    savemat(path, {"groundTruth": truth}, do_compression=True)


def people() -> list[np.ndarray]:
    first = np.ones((HEIGHT, WIDTH), np.uint16)
    first[5:], first[5:, 10:] = 2, 3
    second = first.copy()
    second[second == 3] = 2
    return [first, second]


@pytest.fixture
def bsds(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "train" / "12.jpg")
    save_truth(tmp_path / "truth" / "train" / "12.mat", people())
    return tmp_path


def test_bsds_imports_all_annotators_and_equal_segments_once(bsds: Path) -> None:
    counts: Counter[str] = Counter()
    ((record, _),) = import_bsds500(bsds / "images", bsds / "truth", report=ImportReport(counts=counts))
    found = [(mask.id, mask.area, mask.provenance and mask.provenance.annotator) for mask in record.masks]
    assert found == [(1, 150, "bsds500/1"), (2, 150, "bsds500/1"), (3, 300, "bsds500/1"), (4, 450, "bsds500/2")]
    assert counts == {"same_segment": 1}


def test_bsds_imports_one_annotator(bsds: Path) -> None:
    ((record, _),) = import_bsds500(bsds / "images", bsds / "truth", annotator=2)
    assert [mask.area for mask in record.masks] == [150, 450]
    counts: Counter[str] = Counter()
    assert list(import_bsds500(bsds / "images", bsds / "truth", annotator=3, report=ImportReport(counts=counts))) == []
    assert counts == {"image_without_annotator": 1}
    with pytest.raises(ShardError, match="expected the number of an annotator from 1"):
        list(import_bsds500(bsds / "images", bsds / "truth", annotator=-1))


def truth_of(**content: object) -> Callable[[Path], object]:
    return lambda p: savemat(p / "truth" / "train" / "12.mat", content)


VERSION_7_3 = b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + b"\x89HDF" * 99

WRONG_BSDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (lambda p: save_truth(p / "truth" / "train" / "12.mat", [np.ones((30, 20), np.uint16)]), "12.mat is 20 x 30"),
    "floats": (lambda p: save_truth(p / "truth" / "train" / "12.mat", [np.ones((20, 30))]), "unsigned integers"),
    "no_annotator": (lambda p: save_truth(p / "truth" / "train" / "12.mat", []), "no ground truth|expected one or more"),
    "other_variable": (truth_of(x=np.ones(3)), "not a ground truth of BSDS500"),
    "no_cells": (truth_of(groundTruth=np.ones(3)), "not a ground truth of BSDS500"),
    "text": (lambda p: (p / "truth" / "train" / "12.mat").write_text("hello"), "not a ground truth of BSDS500"),
    "empty": (lambda p: (p / "truth" / "train" / "12.mat").write_bytes(b""), "not a ground truth of BSDS500"),
    "v7.3": (
        lambda p: (p / "truth" / "train" / "12.mat").write_bytes(
            b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + b"\x89HDF" * 99
        ),
        "not a ground truth",
    ),
    "no_truth": (lambda p: (p / "truth" / "train" / "12.mat").unlink(), "12.jpg has no ground truth"),
}


@pytest.mark.parametrize("wrong", WRONG_BSDS)
def test_error_names_the_wrong_bsds_file(bsds: Path, wrong: str) -> None:
    spoil, message = WRONG_BSDS[wrong]
    spoil(bsds)
    with pytest.raises(ShardError, match=message):
        list(import_bsds500(bsds / "images", bsds / "truth"))


def test_rejects_truncated_and_corrupt_bsds_files(bsds: Path) -> None:
    path = bsds / "truth" / "train" / "12.mat"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"12\.mat"):
            read_bsds_segmentations(path)


def test_rejects_a_mat_that_decompresses_to_too_much(bsds: Path) -> None:
    save_truth(bsds / "truth" / "train" / "12.mat", [np.zeros((12_000, 12_000), np.uint16)])
    assert (bsds / "truth" / "train" / "12.mat").stat().st_size < 2_000_000
    with pytest.raises(ShardError, match="decompresses to"):
        list(import_bsds500(bsds / "images", bsds / "truth"))


def test_imports_real_bsds(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data" / "bsds500"
    if not folder.is_dir():
        pytest.skip("BSDS500 is not in the folder `shared` beside the repository")
    for path in sorted((folder / "images" / "val").glob("*.jpg"))[:6]:
        for name in (Path("images") / path.name, Path("groundTruth") / f"{path.stem}.mat"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).symlink_to((folder / name.parent / "val" / name.name).resolve())
    for record, _ in import_bsds500(tmp_path / "images", tmp_path / "groundTruth"):
        truth = read_bsds_segmentations(tmp_path / "groundTruth" / f"{record.key}.mat")
        assert len(truth) >= 4
        masks = masks_of(record)
        for number, ids in enumerate(truth, start=1):
            mine = [mask for mask in record.masks if mask.provenance and mask.provenance.annotator == f"bsds500/{number}"]
            covered = sum(masks[mask.id].astype(int) for mask in mine)
            assert np.max(covered) == 1, "the segments of one annotator do not overlap"
            assert len(mine) <= len(np.unique(ids))
            for mask in mine:
                assert len(np.unique(ids[masks[mask.id]])) == 1


FOLDERS = {
    "sa1b": {"source": "nothing"},
    "coco": {"images": "nothing", "annotations": "file"},
    "lvis": {"images": "nothing", "annotations": "file"},
    "label_maps": {"images": "nothing", "labels": "nothing"},
    "binary_masks": {"images": "nothing"},
    "yolo": {"images": "nothing", "labels": "nothing"},
    "panoptic": {"images": "nothing", "labels": "nothing"},
    "bsds500": {"images": "nothing", "labels": "nothing"},
    "labelme": {"images": "nothing"},
    "cvat": {"images": "nothing", "annotations": "file"},
    "amg": {"images": "nothing", "labels": "nothing"},
    "voc": {"source": "nothing"},
    "label_studio": {"images": "nothing", "annotations": "file"},
    "colour_masks": {"images": "nothing", "labels": "nothing"},
}


@pytest.mark.parametrize("what", ["an empty folder", "a wrong file", "nothing there"])
@pytest.mark.parametrize("kind", IMPORTERS)
def test_every_kind_reports_an_empty_data_set_in_one_line(
    tmp_path: Path, kind: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "given"
    if what == "an empty folder":
        place.mkdir()
    elif what == "a wrong file":
        place.write_bytes(b"something else")
    options = [word for name in FOLDERS[kind] for word in (f"--{name}", str(place))]
    with pytest.raises(SystemExit) as ended:
        main(["import", kind, *options, "--out", f"{tmp_path}/out"])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    assert "given" in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("out/**/*.*"))
