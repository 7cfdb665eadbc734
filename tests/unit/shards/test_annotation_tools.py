"""Import and export of labelme, CVAT, Label Studio, Pascal VOC, the mask generator and colour-coded maps."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from import_data_sets import (
    DATA_SETS,
    HEIGHT,
    WIDTH,
    command,
    cvat_polygon,
    cvat_xml,
    label_map,
    object_mask,
    polygon,
    save,
    save_json,
)
from PIL import Image, ImageOps

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord, MaskRecord
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards import decode_jpeg, expand_shards, iterate_samples, write_shard
from sam_train.shards.brush_rle import decode_brush, encode_brush
from sam_train.shards.exporters.crops import row_runs
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.colour_masks import voc_colour
from sam_train.shards.importers.report import ImportReport

TOOLS = ("labelme", "cvat", "amg", "voc", "label_studio", "colour_masks")


def records(kind: str, report: ImportReport | None = None, **options: Any) -> list[ImageRecord]:
    report = ImportReport() if report is None else report
    return [record for record, _ in IMPORTERS[kind](**options, report=report)]


def masks_of(record: ImageRecord) -> list[np.ndarray]:
    return [decode_rle(mask.segmentation, height=record.height, width=record.width) for mask in record.masks]


@pytest.mark.parametrize("kind", TOOLS)
def test_every_object_is_imported_to_the_pixel(kind: str, tmp_path: Path) -> None:
    found = records(kind, **DATA_SETS[kind](tmp_path))
    assert len(found) == 2
    for record in found:
        for mask, number in zip(masks_of(record), (0, 1), strict=True):
            np.testing.assert_array_equal(mask, object_mask(number))
    names = {mask.name for record in found for mask in record.masks}
    assert names == {"amg": {""}, "colour_masks": {""}, "voc": {"car", "cat"}}.get(kind, {"cat"})


def labelme(folder: Path, shapes: list[Any], **more: object) -> dict[str, Path]:
    document = {"version": "5.5.0", "shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageData": None, **more}
    save_json(folder / "labels" / "sub" / "a.json", {**document, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    return {"images": folder / "images", "labels": folder / "labels"}


def mask_shape(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    stream = io.BytesIO()
    Image.fromarray((mask[top : bottom + 1, left : right + 1] * 255).astype(np.uint8)).save(stream, "PNG")
    points = [[int(left), int(top)], [int(right), int(bottom)]]
    return {"label": "cat", "shape_type": "mask", "points": points, "mask": base64.b64encode(stream.getvalue()).decode()}


def test_labelme_shapes_of_every_type(tmp_path: Path) -> None:
    save(tmp_path / "images" / "sub" / "a.jpg")
    ring = object_mask(0)
    ring[4:6, 5:7] = False
    shapes = [
        {"label": "cat", "points": polygon(0), "shape_type": "polygon", "group_id": 3},
        {"label": "cat", "points": polygon(1), "shape_type": "polygon", "group_id": 3},
        {"label": "dog", "points": [[3, 2], [12, 9]], "shape_type": "rectangle", "group_id": None},
        {"label": "dog", "points": polygon(1), "shape_type": "rotation"},
        {"label": "dog", "points": [[15, 10], [15, 16]], "shape_type": "circle"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
        {"label": "dog", "points": [[1, 1], [5, 5]], "shape_type": "line"},
        {"label": "__ignore__", "points": polygon(0), "shape_type": "polygon"},
        mask_shape(ring),
    ]
    report = ImportReport()
    (record,) = records("labelme", report, **labelme(tmp_path, shapes))
    assert [(mask.id, mask.name) for mask in record.masks] == [(1, "cat"), (3, "dog"), (4, "dog"), (5, "dog"), (9, "cat")]
    joined, rectangle, rotated, circle, ring_found = masks_of(record)
    np.testing.assert_array_equal(joined, object_mask(0) | object_mask(1))
    np.testing.assert_array_equal(rectangle, object_mask(0))
    np.testing.assert_array_equal(rotated, object_mask(1))
    np.testing.assert_array_equal(ring_found, ring)
    distance = np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] + 0.5 - np.array([10, 15])[:, None, None]))
    assert circle[distance < 5.7].all()
    assert not circle[distance > 6.3].any()
    assert report.counts == {"shape_without_area": 2, "ignored_label": 1}
    assert report.categories == {1: "cat", 2: "dog"}


def test_labelme_image_path_that_names_the_json(tmp_path: Path) -> None:
    save(tmp_path / "images" / "sub" / "a.png")
    shape = {"label": "cat", "points": polygon(0), "shape_type": "polygon"}
    report = ImportReport()
    (record,) = records("labelme", report, **labelme(tmp_path, [shape], imagePath="a.json"))
    assert (record.source_file, report.counts) == ("sub/a.png", {"file_name_normalised": 1})


def test_labelme_image_inside_the_json(tmp_path: Path) -> None:
    data = base64.b64encode(save(tmp_path / "elsewhere.jpg").read_bytes()).decode()
    (tmp_path / "images").mkdir()
    report = ImportReport()
    options = labelme(tmp_path, [{"label": "cat", "points": polygon(0), "shape_type": "polygon"}], imageData=data)
    (record,) = records("labelme", report, **options)
    assert (len(record.masks), report.counts) == (1, {"image_from_json": 1})


def test_cvat_shapes_of_every_type(tmp_path: Path) -> None:
    box = object_mask(0)[2:9, 3:12].copy()
    box[2, 2] = False
    runs = ", ".join(map(str, row_runs(box)))
    shapes = [
        cvat_polygon(0, group_id="2"),
        cvat_polygon(1, group_id="2"),
        f'<mask label="dog" rle="{runs}" left="3" top="2" width="9" height="7" z_order="0"></mask>',
        '<box label="dog" xtl="3.0" ytl="2.0" xbr="12.0" ybr="9.0" z_order="0"></box>',
        '<ellipse label="dog" cx="15" cy="10" rx="6" ry="3" rotation="90.0" z_order="0"></ellipse>',
        '<polyline label="dog" points="1,1;2,2"></polyline><tag label="dog"></tag>',
    ]
    options = DATA_SETS["cvat"](tmp_path)
    options["annotations"].write_text(cvat_xml("".join(shapes)))
    report = ImportReport()
    (record, _) = records("cvat", report, **options)
    joined, mask, ellipse = masks_of(record)
    np.testing.assert_array_equal(joined, object_mask(0) | object_mask(1))
    assert mask.sum() == 62
    assert not mask[4, 5]
    assert [m.name for m in record.masks] == ["cat", "dog", "dog"]
    assert (ellipse[:, 15].sum(), ellipse[10].sum()) == (12, 6), "turned by 90 degrees"
    assert report.counts == {"box_without_polygon": 2, "shape_without_area": 4}
    assert len(records("cvat", **options, boxes=True)[0].masks) == 4
    assert report.categories == {1: "cat", 2: "dog"}


def test_cvat_projects_have_a_folder_per_subset(tmp_path: Path) -> None:
    options = DATA_SETS["cvat"](tmp_path)
    text = cvat_xml(cvat_polygon(0)).replace('name="b.jpg"', 'name="a.jpg"')
    options["annotations"].write_text(text.replace('id="0"', 'id="0" subset="Train"').replace('id="1"', 'id="0" subset="Val"'))
    for subset in ("Train", "Val"):
        save(tmp_path / "images" / subset / "a.jpg")
    assert [record.source_file for record in records("cvat", **options)] == ["Train/a.jpg", "Val/a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations>", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "has a document type"),
        ("<annotations><track/></annotations>", "CVAT for images 1.1"),
        (cvat_xml('<mask label="a" rle="3" left="0" top="0" width="2" height="2"/>'), "3 pixels in 1 runs, expected the 4"),
        (cvat_xml('<mask label="a" rle="0,4" left="29" top="0" width="2" height="2"/>'), "does not fit the image"),
        (cvat_xml('<polygon label="a" points="1,2;x"/>'), "expected points"),
        (cvat_xml('<box label="a" xtl="1"/>'), "expected numbers as xtl"),
        (cvat_xml("").replace('width="30"', 'width="31"'), "its annotations declare 31 x 20"),
    ],
)
def test_wrong_cvat_files(tmp_path: Path, text: str, message: str) -> None:
    options = DATA_SETS["cvat"](tmp_path)
    options["annotations"].write_text(text)
    with pytest.raises(Exception, match=message):
        records("cvat", **options, boxes=True)


def test_brush_masks_survive_their_encoding() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (20, 30), (200, 333)):
        for mask in (rng.random((height, width)) > 0.5, np.zeros((height, width), bool), np.ones((height, width), bool)):
            np.testing.assert_array_equal(decode_brush(encode_brush(mask), height=height, width=width), mask)
    data = encode_brush(object_mask(0))
    with pytest.raises(ValueError, match="truncated"):
        decode_brush(data[:-3], height=HEIGHT, width=WIDTH)
    with pytest.raises(ValueError, match="values, the image has"):
        decode_brush(data, height=HEIGHT, width=WIDTH + 1)


def test_brush_literals_are_decoded() -> None:
    """A literal piece: 2 x 2 pixels, alpha 255 at the first and the last, one piece of 16 values of 8 bits."""
    values = [0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255]
    bits = f"{16:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + f"0{1:02b}{15:04b}"
    bits += "".join(f"{value:08b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    np.testing.assert_array_equal(decode_brush(data, height=2, width=2), [[True, False], [False, True]])


def test_label_studio_regions_of_every_type(tmp_path: Path) -> None:
    options = DATA_SETS["label_studio"](tmp_path)
    tasks = json.loads(options["annotations"].read_text())
    region = tasks[0]["annotations"][0]["result"][0]
    brush = {"format": "rle", "rle": list(encode_brush(object_mask(1))), "brushlabels": ["dog"]}
    rectangle = {"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["dog"]}
    tasks[0]["annotations"] = [
        {"was_cancelled": True, "result": []},
        {
            "result": [
                region,
                {**region, "type": "brushlabels", "value": brush},
                {**region, "type": "rectanglelabels", "value": rectangle},
                {**region, "type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["dog"]}},
            ]
        },
    ]
    tasks[0]["data"] = {"image": "/data/local-files/?d=sets%5Cimages%5Ca.jpg"}
    save_json(options["annotations"], tasks)
    report = ImportReport()
    (record, _) = records("label_studio", report, **options)
    for mask, number in zip(masks_of(record), (0, 1), strict=True):
        np.testing.assert_array_equal(mask, object_mask(number))
    assert [mask.name for mask in record.masks] == ["cat", "dog"]
    assert report.counts == {"further_annotation": 1, "box_without_polygon": 1, "shape_without_area": 1}
    tasks[0]["annotations"][1]["result"][0]["image_rotation"] = 90
    save_json(options["annotations"], tasks)
    with pytest.raises(Exception, match="turned by 90 degrees"):
        records("label_studio", **options)


@pytest.mark.parametrize("form", ["palette", "colours"])
def test_voc_borders_classes_and_image_sets(tmp_path: Path, form: str) -> None:
    objects = label_map()
    objects[2] = np.where(objects[2] > 0, 255, 0)
    classes = np.where(objects == 1, 7, np.where(objects == 2, 8, objects))
    for folder, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        colours = np.array([voc_colour(n) for n in range(256)], np.uint8)
        image = Image.fromarray(colours[values]) if form == "colours" else Image.fromarray(values.astype(np.uint8))
        if form == "palette":
            image.putpalette(colours.ravel().tolist())
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")
    for stem in "abc":
        save(tmp_path / "JPEGImages" / f"{stem}.jpg")
    report = ImportReport()
    (record,) = records("voc", report, source=tmp_path)
    assert [(mask.id, mask.name) for mask in record.masks] == [(1, "car"), (2, "cat")]
    np.testing.assert_array_equal(masks_of(record)[0], objects == 1)
    assert report.counts == {"image_without_labels": 2}
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")
    assert records("voc", source=tmp_path, image_set="val") == []


def test_colours_are_classes_of_a_file(tmp_path: Path) -> None:
    options = DATA_SETS["colour_masks"](tmp_path)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:1,3,0::", "traffic light:2,6,0::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    report = ImportReport()
    (record, _) = records("colour_masks", report, **options, colours=tmp_path / "labelmap.txt")
    assert [(mask.id, mask.name) for mask in record.masks] == [(1, "cat"), (2, "traffic light")]
    assert report.categories == {0: "background", 1: "cat", 2: "traffic light"}
    (tmp_path / "few.txt").write_text("cat 1 3 0\n")
    with pytest.raises(Exception, match=r"has the colour \(2, 6, 0\), which is of no class"):
        records("colour_masks", **options, colours=tmp_path / "few.txt")


def odd_shards(folder: Path) -> Path:
    """A shard whose masks have holes, parts and single pixels and touch the borders, and do not overlap."""
    rng = np.random.default_rng(3)
    samples = []
    for number, (height, width) in enumerate([(20, 30), (24, 24), (17, 40)]):
        ids = rng.integers(0, 4, (height, width))
        ids[:4, :9] = 1
        masks = []
        for value in (1, 2, 3):
            mask = ids == value
            rle = encode_rle(mask)
            numbers = {"predicted_iou": 1.0, "stability_score": 1.0, "crop_box": [0.0, 0.0, float(width), float(height)]}
            masks.append(MaskRecord(id=value, segmentation=rle, bbox=[0.0] * 4, area=int(mask.sum()), point_coords=[], **numbers))
        stream = io.BytesIO()
        Image.fromarray((ids * 60).astype(np.uint8)).convert("RGB").save(stream, "JPEG")
        samples.append(
            (ImageRecord(key=f"k{number}", image_id=number, width=width, height=height, masks=masks), stream.getvalue())
        )
    write_shard(folder / "sa_000000.tar", samples)
    return folder


BACK: dict[str, dict[str, str]] = {
    "coco": {"images": "images", "annotations": "instances.json"},
    "yolo": {"images": "images", "labels": "labels"},
    "label_maps": {"images": "images", "labels": "labels"},
    "labelme": {"images": "images"},
    "cvat": {"images": "images", "annotations": "annotations.xml"},
    "voc": {"source": "."},
    "label_studio": {"images": "images", "annotations": "tasks.json"},
}


def through(kind: str, shards: Path, folder: Path, *more: str) -> Path:
    """Export shards to a format and import them again."""
    export = [word for word in more if not word.startswith("--regions")]
    main(["export", kind, "--shards", str(shards), "--out", str(folder / "export"), *export])
    options = {name: folder / "export" / path for name, path in BACK[kind].items()}
    regions = ["--regions", "predictions"] if kind == "label_studio" else []
    main(command(kind, options, "--out", str(folder / "shards"), *regions))
    return folder / "shards"


def read(folder: Path) -> dict[str, list[np.ndarray]]:
    return {sample.record.key: masks_of(sample.record) for sample in iterate_samples(expand_shards(str(folder)))}


@pytest.mark.parametrize("kind", BACK)
@pytest.mark.parametrize("form", ["default", "polygons"])
def test_a_round_trip_is_equal_to_the_pixel(kind: str, form: str, tmp_path: Path) -> None:
    if form == "polygons" and kind not in ("coco", "labelme"):
        pytest.skip("this format has one form of masks")
    shards = odd_shards(tmp_path / "in")
    back = through(kind, shards, tmp_path / kind, *(["--mask-format", form] if form == "polygons" else []))
    wanted, found = read(shards), read(back)
    assert found.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])


@pytest.mark.parametrize("size", [(20, 30), (24, 24)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_three_formats_agree_for_every_orientation(tmp_path: Path, size: tuple[int, int], orientation: int) -> None:
    """One object is annotated upright in labelme and a label map and as stored in COCO; then it goes through three formats."""
    height, width = size
    stored = np.zeros((height, width), bool)
    stored[2:9, 3:12], stored[4, 5] = True, False
    turned = Image.fromarray(stored)
    turned.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(turned))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    pixels = np.where(stored[..., None], 255, 20).astype(np.uint8).repeat(3, 2)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.jpg", exif=exif, quality=100, subsampling=0)
    sides = {"imageHeight": upright.shape[0], "imageWidth": upright.shape[1]}
    save_json(tmp_path / "images" / "a.json", {"shapes": [mask_shape(upright)], "imagePath": "a.jpg", **sides})
    save(tmp_path / "labels" / "a.png", upright.astype(np.uint8))
    image = {"id": 1, "file_name": "a.jpg", "height": height, "width": width}
    mask = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": encode_rle(stored), "iscrowd": 0}
    document = {"images": [image], "annotations": [mask], "categories": [{"id": 1, "name": "cat"}]}
    images = {"images": tmp_path / "images"}
    sources: dict[str, dict[str, Any]] = {
        "labelme": images,
        "label_maps": {**images, "labels": tmp_path / "labels"},
        "coco": {**images, "annotations": save_json(tmp_path / "coco.json", document)},
    }
    for kind, options in sources.items():
        ((record, jpeg),) = IMPORTERS[kind](**options)
        wanted = stored if kind == "coco" else upright
        np.testing.assert_array_equal(masks_of(record), [wanted])
        np.testing.assert_array_equal(decode_jpeg(jpeg)[..., 0] > 128, wanted)
    if orientation == 6:
        main(command("labelme", images, "--out", str(tmp_path / "shards")))
        place = tmp_path / "shards"
        for kind in ("cvat", "coco", "label_studio"):
            place = through(kind, place, tmp_path / kind)
        np.testing.assert_array_equal(read(place)["a"], [upright])
