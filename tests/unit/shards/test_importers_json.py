"""Import of COCO's and LVIS's instances JSON, and conversion of polygons to masks."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sam_train.cli.commands import data as main
from sam_train.errors import ShardError
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards import decode_jpeg
from sam_train.shards.importers.coco import import_coco
from sam_train.shards.importers.instances_json import read_instances
from sam_train.shards.importers.lvis import import_lvis
from sam_train.shards.importers.polygons import polygons_to_rle
from sam_train.shards.importers.report import ImportReport

HEIGHT, WIDTH = 20, 30
SQUARE = [2.0, 3.0, 9.0, 3.0, 9.0, 12.0, 2.0, 12.0]
TRIANGLE = [20, 15, 28, 15, 24, 19]
DISC = np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - np.array([10, 20])[:, None, None])) < 6


def runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.ravel(order="F").astype(int), [1 - int(mask[-1, -1])]])
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], changes])).tolist()


def annotation(number: int, segmentation: object, image_id: int = 7, **more: object) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two images, one without masks, and every form of a segmentation."""
    (tmp_path / "images" / "val").mkdir(parents=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for name in ("val/b.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    document = {
        "images": [
            {"id": 7, "file_name": "val/b.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            annotation(11, [SQUARE, TRIANGLE]),
            annotation(12, {"size": [HEIGHT, WIDTH], "counts": runs(DISC)}),
            annotation(13, encode_rle(DISC)),
            annotation(14, {"size": [HEIGHT, WIDTH], "counts": runs(~DISC)}, iscrowd=1),
            annotation(15, [[1, 1, 2, 2]]),
            annotation(16, []),
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


def change(coco: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((coco / "instances.json").read_text())
    edit(document)
    (coco / "instances.json").write_text(json.dumps(document))


def imported(coco: Path, **options: Any) -> dict[str, tuple[ImageRecord, bytes]]:
    found = import_coco(coco / "images", coco / "instances.json", **options)
    return {record.key: (record, jpeg) for record, jpeg in found}


def masks_of(record: ImageRecord) -> dict[int, np.ndarray]:
    return {m.id: decode_rle(m.segmentation, height=record.height, width=record.width) for m in record.masks}


def test_imports_every_form_of_a_segmentation(coco: Path) -> None:
    counts: Counter[str] = Counter()
    found = imported(coco, drop_crowd=True, report=ImportReport(counts=counts))
    assert [record.image_id for record, _ in found.values()] == [3, 7]
    (empty, _), (record, jpeg) = found.values()
    assert empty.masks == []
    assert decode_jpeg(jpeg).shape[:2] == (HEIGHT, WIDTH)
    masks = masks_of(record)
    assert set(masks) == {11, 12, 13}
    np.testing.assert_array_equal(masks[12], DISC)
    np.testing.assert_array_equal(masks[13], DISC)
    assert counts == {"crowd": 1, "mask_without_pixels": 2, "polygon_below_3_points": 1}
    assert masks[11][3:12, 2:9].all()
    assert masks[11].sum() == 63 + masks[11][13:].sum() > 70
    assert record.masks[0].area == masks[11].sum()
    assert record.masks[1].bbox == [15, 5, 11, 11]
    assert ImageRecord.from_json(record.to_json(), key=record.key) == record


def test_import_agrees_with_pycocotools(coco: Path) -> None:
    reference = COCO(str(coco / "instances.json"))
    (_, _), (record, _) = imported(coco).values()
    masks = masks_of(record)
    assert set(masks) == {11, 12, 13, 14}
    for number, mask in masks.items():
        np.testing.assert_array_equal(mask, reference.annToMask(reference.anns[number]).astype(bool))


def test_rejects_or_skips_a_missing_image(coco: Path) -> None:
    (coco / "images" / "a.png").unlink()
    with pytest.raises(ShardError, match=r"no such image: .*a\.png"):
        imported(coco)
    counts: Counter[str] = Counter()
    assert len(imported(coco, missing="leave_out", report=ImportReport(counts=counts))) == 1
    assert counts["image_missing"] == 1


def with_orientation(coco: Path, orientation: int, width: int, height: int) -> tuple[ImageRecord, bytes]:
    """Write the second image, stored wide with a bright left end, with this EXIF orientation and this size in the JSON."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :5] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(coco / "images" / "val" / "b.jpg", quality=95, exif=exif)
    change(coco, lambda d: d["images"][0].update(width=width, height=height))
    change(coco, lambda d: d.update(annotations=[annotation(1, [[0, 0, 5, 0, 5, height, 0, height]])]))
    return list(imported(coco).values())[1]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_refer_to_pixels_as_stored(coco: Path, orientation: int) -> None:
    record, jpeg = with_orientation(coco, orientation, WIDTH, HEIGHT)
    (mask,) = masks_of(record).values()
    assert decode_jpeg(jpeg)[mask].mean() > 200
    assert decode_jpeg(jpeg)[~mask].mean() < 20


def test_masks_of_the_upright_size_get_the_upright_image(coco: Path) -> None:
    record, jpeg = with_orientation(coco, 6, HEIGHT, WIDTH)
    assert decode_jpeg(jpeg).shape[:2] == (record.height, record.width) == (WIDTH, HEIGHT)
    assert decode_jpeg(jpeg)[:5].mean() > 200


def first(part: str, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document[part][0].update(values)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "climbing": (first("images", file_name="../../etc/passwd.jpg"), "leads out of the folder"),
    "absolute": (first("images", file_name="/etc/passwd.jpg"), "no such image: .*images/passwd.jpg"),
    "backslash": (first("images", file_name="..\\b.jpg"), "expected a file name"),
    "no_name": (first("images", file_name=None), "expected a file name"),
    "size": (first("images", width=31), "is 30 x 20, its annotations declare 31 x 20"),
    "huge_size": (first("images", width=10**12, height=10**12), "is 30 x 20, its annotations declare"),
    "not_a_size": (first("images", width="wide"), "expected an integer as 'width'"),
    "rle_size": (first("annotations", segmentation={"size": [30, 20], "counts": [600]}), "RLE size"),
    "huge_runs": (first("annotations", segmentation={"size": [20, 30], "counts": [10**18]}), "RLE counts are neither"),
    "negative_runs": (first("annotations", segmentation={"size": [20, 30], "counts": [-1, 601]}), "RLE counts are neither"),
    "short_runs": (first("annotations", segmentation={"size": [20, 30], "counts": [599]}), "add up to 599"),
    "rle_string": (first("annotations", segmentation={"size": [20, 30], "counts": "zzzzzzzzzz"}), "malformed"),
    "no_segmentation": (first("annotations", segmentation=None), "expected polygons or an RLE"),
    "odd_polygon": (first("annotations", segmentation=[[1, 2, 3, 4, 5]]), "expected a polygon as a list"),
    "words": (first("annotations", segmentation=[["a", "b"]]), "expected a polygon as a list"),
    "odd_flat_polygon": (first("annotations", segmentation=[1, 2, 3, 4, 5]), "expected a polygon as a list"),
    "no_polygon": (first("annotations", segmentation=[1, [2, 3]]), "expected a polygon as a list"),
    "far": (first("annotations", segmentation=[[0, 0, 1e300, 0, 5, 5]]), "is NaN or inf, or more than"),
    "nan": (first("annotations", segmentation=[[0, 0, float("nan"), 0, 5, 5]]), "is NaN or inf, or more than"),
    "overflow": (
        first("annotations", segmentation=[[0, 0, 10**400, 0, 5, 5]]),
        "a coordinate of a polygon is too large",
    ),
    "unknown_image": (first("annotations", image_id=99), "image ids that no image has"),
    "id": (first("annotations", id=[1]), "expected an integer as 'id'"),
    "score": (first("annotations", predicted_iou="good"), "expected a score"),
    "twice": (lambda d: d["images"].append(d["images"][0]), "is a duplicate"),
    "no_images": (lambda d: d.update(images=[], annotations=[]), "no images"),
    "no_lists": (lambda d: d.pop("annotations"), "expected an object with"),
    "lvis": (lambda d: d["images"][0].update(coco_url=d["images"][0].pop("file_name")), "import it as lvis"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_error_names_the_wrong_entry(coco: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    edit, message = WRONG[wrong]
    change(coco, edit)
    with pytest.raises(ShardError, match=message) as caught:
        imported(coco)
    assert any(name in str(caught.value) for name in ("b.jpg", "instances.json", "passwd.jpg"))
    command = ["--images", f"{coco}/images", "--annotations", f"{coco}/instances.json", "--out", f"{coco}/out"]
    with pytest.raises(SystemExit) as ended:
        main(["import", "coco", *command])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("error: ") == 1
    assert not list(coco.glob("out/**/*.*"))


def polygon_mask(points: object, counts: Counter[str] | None = None) -> np.ndarray:
    counts = Counter() if counts is None else counts
    arrays = [np.asarray(points, float)]
    rle = polygons_to_rle(arrays, height=HEIGHT, width=WIDTH, counts=counts, place="here")
    return np.zeros((HEIGHT, WIDTH), bool) if rle is None else decode_rle(rle, height=HEIGHT, width=WIDTH)


def test_clips_and_counts_polygons_beyond_the_image() -> None:
    for far in (3, 1000, 9e6):
        counts: Counter[str] = Counter()
        mask = polygon_mask([[-far, 4], [10, 4], [10, 9], [-far, 9]], counts)
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[4:9, :10] = True
        np.testing.assert_array_equal(mask, expected)
        assert counts == {"polygon_clipped": 1}
    whole = [[-9e6, -9e6], [9e6, -9e6], [9e6, 9e6], [-9e6, 9e6]]
    assert polygon_mask(whole).all()
    counts = Counter()
    assert not polygon_mask([[100, 100], [5e6, 100], [5e6, 5e6]], counts).any()
    assert counts == {"polygon_clipped": 1, "polygon_without_pixels": 1}


def distance_to_polygon(point: np.ndarray, points: np.ndarray) -> float:
    start, along = points, np.roll(points, -1, 0) - points
    share = ((point - start) * along).sum(1) / (along**2).sum(1)
    return float(np.hypot(*(start + share.clip(0, 1)[:, None] * along - point).T).min())


def test_clipping_changes_the_mask_only_by_rounding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        points = rng.uniform(-80, 100, (9, 2))
        (rle,) = coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)
        different = np.argwhere(coco_mask.decode(rle).astype(bool) ^ polygon_mask(points))[:, ::-1] + 0.5
        assert len(different) <= 15
        assert all(distance_to_polygon(centre, points) < 0.3 for centre in different), (
            "clipped ends are rounded to fifths of a pixel"
        )


def test_counts_thin_and_flat_polygons() -> None:
    counts: Counter[str] = Counter()
    assert not polygon_mask([[3, 3], [9, 3]], counts).any()
    assert not polygon_mask([[3, 3], [9, 3], [6, 3]], counts).any()
    assert not polygon_mask([[3.1, 3.1], [3.2, 3.1], [3.2, 3.2]], counts).any()
    assert counts == {"polygon_below_3_points": 1, "polygon_without_pixels": 2}


def test_rejects_a_polygon_of_implausible_length() -> None:
    points = np.tile([[0.0, 0.0], [WIDTH, HEIGHT]], (200_000, 1))
    with pytest.raises(ShardError, match="here: a polygon of 400000 corners"):
        polygon_mask(points)


LVIS_IMAGE = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/a.jpg", "height": HEIGHT, "width": WIDTH}


def lvis(tmp_path: Path, **changes: object) -> Path:
    document = {"images": [{**LVIS_IMAGE, **changes}], "annotations": [annotation(5, [SQUARE], image_id=1)]}
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    return tmp_path / "lvis.json"


@pytest.mark.parametrize("place", ["val2017/a.jpg", "a.jpg"])
def test_lvis_finds_images_by_url(tmp_path: Path, place: str) -> None:
    (tmp_path / "images" / place).parent.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / place)
    ((record, _),) = import_lvis(tmp_path / "images", lvis(tmp_path))
    assert record.masks[0].area == 63
    assert record.masks[0].provenance is not None
    assert record.masks[0].provenance.annotator == "lvis"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coco_url": "http://x/../../etc/a.jpg"}, "leads out of the folder"),
        ({"coco_url": "http://[/a.jpg"}, "is not a URL"),
        ({"coco_url": "http://x/"}, "expected a file name"),
        ({"coco_url": None}, "as coco"),
        ({"width": 31}, "is 30 x 20"),
    ],
)
def test_rejects_wrong_lvis_entries(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(ShardError, match=message):
        list(import_lvis(tmp_path / "images", lvis(tmp_path, **changes)))


def test_imports_real_lvis(tmp_path: Path, shared_dir: Path) -> None:
    path = shared_dir / "data" / "lvis_val_100" / "lvis_val_100.json"
    if not path.is_file():
        pytest.skip("the LVIS annotations are not in the folder `shared` beside the repository")
    document = json.loads(path.read_text())
    for image in document["images"]:
        place = tmp_path / Path(*image["coco_url"].split("/")[-2:])
        place.parent.mkdir(exist_ok=True)
        stream = io.BytesIO()
        Image.new("L", (image["width"], image["height"])).save(stream, "JPEG", quality=20)
        place.write_bytes(stream.getvalue())
    counts: Counter[str] = Counter()
    records = {record.image_id: record for record, _ in import_lvis(tmp_path, path, report=ImportReport(counts=counts))}
    assert len(records) == 100
    assert sum(len(record.masks) for record in records.values()) + counts["mask_without_pixels"] == len(document["annotations"])
    assert counts["mask_without_pixels"] <= 2
    areas = {mask.id: mask.area for record in records.values() for mask in record.masks}
    errors = [
        abs(areas[a["id"]] - a["area"]) / a["area"] for a in document["annotations"] if a["id"] in areas and a["area"] > 500
    ]
    assert np.median(errors) < 0.01
    assert max(errors) < 0.1


def test_reads_a_json_with_a_byte_order_mark_or_nan(coco: Path) -> None:
    plain = [record for record, _ in imported(coco).values()]
    text = (coco / "instances.json").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (coco / "instances.json").write_text(text, encoding=encoding)
        assert [record for record, _ in imported(coco).values()] == plain


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"val/b.jpg"', b'"val/\xff.jpg"', r"images\[0\] is not JSON"),
        (b'"id": 12', b'"id": "\xff"', "annotation 1 is not JSON"),
        (b'{"id": 11, "image_id": 7', b'3, {"id": 11, "image_id": 7', "lists of objects|expected an object, got 3"),
        (b'"image_id": 7', b'"image_id": 1' + b"0" * 30, "at most 64 bits"),
        (b'"categories": [', b'"categories": [3, ', r"categories\[0\]"),
    ],
)
def test_rejects_entries_that_are_not_objects(coco: Path, old: bytes, new: bytes, message: str) -> None:
    path = coco / "instances.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ShardError, match=message):
        imported(coco)


def test_large_json_is_not_decoded_as_a_whole(tmp_path: Path) -> None:
    """Python objects would take several times the size of the file; entries stay in the file until their image is imported."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("memory is read from /proc, which only Linux has")
    polygon = [[float(number) + 0.25 for number in range(400)]]
    images = [{"id": n, "file_name": f"{n:06d}.jpg", "height": 400, "width": 400} for n in range(400)]
    text = json.dumps([annotation(n, polygon, image_id=n % 400) for n in range(8000)])
    (tmp_path / "a.json").write_text(f'{{"images":{json.dumps(images)},"annotations":{text}}}')
    size = len(text)
    del text

    def anonymous_bytes() -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("RssAnon"))

    before = anonymous_bytes()
    found = read_instances(tmp_path / "a.json", lambda image, _: image["file_name"], ImportReport())
    assert anonymous_bytes() - before < size / 2
    read = [annotation for _, annotation in found[7].annotations(ImportReport())]
    assert [a["id"] for a in read] == [*range(7, 8000, 400)]
    assert read[3]["segmentation"] == polygon


def test_rejects_an_import_without_any_image_file(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", "coco", "--images", f"{coco}/elsewhere", "--annotations", f"{coco}/instances.json"]
    with pytest.raises(SystemExit):
        main([*command, "--out", f"{coco}/out", "--missing", "leave_out"])
    assert "has no image to import, nothing was written; counted: 2 image_missing" in capsys.readouterr().err
    assert not (coco / "out").exists()
