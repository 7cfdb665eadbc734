"""Import of what common tools write: odd numbers and names, frames, crowds, suffixes, groups; wrong entries are left out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from import_data_sets import HEIGHT, WIDTH, command, instances, label_map, make_sa1b, make_yolo, object_mask, save, save_json
from PIL import Image

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards import decode_jpeg, expand_shards, iterate_samples, load_manifest
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.report import ImportReport


def records(kind: str, report: ImportReport | None = None, **options: Any) -> list[tuple[ImageRecord, bytes]]:
    return list(IMPORTERS[kind](**options, report=ImportReport() if report is None else report))


def masks_of(record: ImageRecord) -> list[np.ndarray]:
    return [decode_rle(mask.segmentation, height=record.height, width=record.width) for mask in record.masks]


def coco(folder: Path, change: Callable[[dict[str, Any]], object] = lambda document: None) -> dict[str, Path]:
    """Write a COCO data set of the images a and b, changed by `change`."""
    document = instances()
    change(document)
    for name in ("a.jpg", "b.jpg"):
        save(folder / "images" / name)
    return {"images": folder / "images", "annotations": save_json(folder / "instances.json", document)}


def test_sa1b_imports_names_with_dots(tmp_path: Path) -> None:
    source = make_sa1b(tmp_path)["source"]
    for name in ("img.v2", "IMG_1.rf.0123"):
        for extension in ("jpg", "json"):
            data = (source / f"a.{extension}").read_bytes().replace(b'"a.jpg"', f'"{name}.jpg"'.encode())
            (source / f"{name}.{extension}").write_bytes(data)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    for place in (source, tmp_path / "in.tar"):
        found = {record.source_file: len(record.masks) for record, _ in records("sa1b", source=place)}
        assert found == {"IMG_1.rf.0123.jpg": 2, "a.jpg": 2, "b.jpg": 2, "img.v2.jpg": 2}
        assert len({record.key for record, _ in records("sa1b", source=place)}) == 4


def test_sa1b_reads_further_keys_absent_scores_png_and_the_list_of_the_generator(tmp_path: Path) -> None:
    source = make_sa1b(tmp_path)["source"]
    document = json.loads((source / "a.json").read_text())
    document["info"] = {"version": 1}
    for annotation in document["annotations"]:
        annotation |= {"category_id": 1, "area": float(annotation["area"])}
        del annotation["predicted_iou"], annotation["stability_score"]
    save_json(source / "a.json", document)
    (source / "b.jpg").unlink()
    save(source / "b.png")
    generated = [{**a, "predicted_iou": 0.5, "crop_box": [0, 0, WIDTH, HEIGHT]} for a in document["annotations"]]
    for annotation in generated:
        del annotation["id"]
    save_json(source / "b.json", generated)
    report = ImportReport()
    (first, _), (second, _) = records("sa1b", report, source=source)
    for record in (first, second):
        for mask, number in zip(masks_of(record), (0, 1), strict=True):
            np.testing.assert_array_equal(mask, object_mask(number))
    assert [mask.predicted_iou for mask in (*first.masks, *second.masks)] == [1.0, 1.0, 0.5, 0.5]
    assert [mask.id for mask in second.masks] == [1, 2]
    assert report.counts == {"key_dropped": 5, "record_completed": 4}


def turned_coco(folder: Path, orientation: int, size: tuple[int, int], frame: str) -> tuple[dict[str, Path], np.ndarray]:
    """Write a data set whose image a has this orientation and b is turned by 90 degrees and not square, in one frame.

    Returns the options, and the object of image a in that frame.
    """
    height, width = size
    stored = np.zeros((height, width), bool)
    stored[2:7, 3:12] = True
    exif, document = Image.Exif(), instances()
    for image, turned in zip(document["images"], (orientation, 6), strict=True):
        pixels = np.where(stored[..., None], 255, 20).astype(np.uint8).repeat(3, 2)
        pixels = pixels if image["id"] == 1 else np.full((20, 30, 3), 20, np.uint8)
        exif[0x0112] = turned
        path = folder / "images" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif, quality=100, subsampling=0)
        upright = frame == "upright" and turned >= 5
        image["width"], image["height"] = pixels.shape[1::-1] if not upright else pixels.shape[:2]
    shape = Image.fromarray(stored)
    shape.getexif()[0x0112] = orientation
    from PIL import ImageOps

    mask = np.asarray(ImageOps.exif_transpose(shape)) if frame == "upright" else stored
    document["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": encode_rle(mask), "iscrowd": 0, "bbox": [0, 0, 1, 1]}
    ]
    return {"images": folder / "images", "annotations": save_json(folder / "instances.json", document)}, mask


@pytest.mark.parametrize("frame", ["stored", "upright"])
@pytest.mark.parametrize("size", [(20, 30), (24, 24)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_frame_is_one_decision_of_the_data_set(tmp_path: Path, frame: str, size: tuple[int, int], orientation: int) -> None:
    options, mask = turned_coco(tmp_path, orientation, size, frame)
    report = ImportReport()
    (record, jpeg), _ = records("coco", report, **options)
    (found,) = masks_of(record)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(decode_jpeg(jpeg)[..., 0] > 128, mask)
    assert report.counts == {}


def test_two_frames_in_one_data_set_are_an_error(tmp_path: Path) -> None:
    options, _ = turned_coco(tmp_path, 6, (20, 30), "upright")
    document = json.loads(options["annotations"].read_text())
    document["images"][1].update(width=30, height=20)
    save_json(options["annotations"], document)
    with pytest.raises(Exception, match=r"two frames: those of b\.jpg fit the pixels as stored, those of a\.jpg the upright"):
        records("coco", **options)


def test_an_orientation_of_a_png_is_removed_for_the_stored_frame(tmp_path: Path) -> None:
    options = coco(tmp_path, lambda d: d["images"][0].update(file_name="a.png"))
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:5] = 255
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    (_, jpeg), _ = records("coco", **options, frame="stored")
    assert decode_jpeg(jpeg)[:4].min() > 200


def crowded(document: dict[str, Any], *, value: object = 1) -> None:
    for number, annotation in enumerate(document["annotations"]):
        annotation |= {"iscrowd": value, "segmentation": encode_rle(object_mask(number % 2))}


def test_crowds_are_kept_unless_they_are_to_be_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = coco(tmp_path, crowded)
    assert [len(record.masks) for record, _ in records("coco", **options)] == [2, 2]
    with pytest.raises(SystemExit):
        main(command("coco", options, "--out", str(tmp_path / "out"), "--drop-crowd"))
    assert "the rule 'crowd' leaves out 4 of 4 masks, 0 remain: leave --drop-crowd away" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["0", "false", False, 0.0, None])
def test_a_flag_as_text_or_boolean_is_parsed(tmp_path: Path, value: object) -> None:
    options = coco(tmp_path, lambda document: crowded(document, value=value))
    assert [len(record.masks) for record, _ in records("coco", **options, drop_crowd=True)] == [2, 2]


def test_boxes_without_a_polygon_are_counted(tmp_path: Path) -> None:
    def boxes(document: dict[str, Any]) -> None:
        for annotation, segmentation in zip(document["annotations"], (None, [], "absent", None), strict=True):
            annotation |= {"bbox": [1, 1, 5, 5], "segmentation": segmentation}
            annotation.pop("segmentation") if segmentation == "absent" else None
        document["annotations"][3]["segmentation"] = [[1, 1, 9, 1, 9, 9]]

    report = ImportReport()
    assert sum(len(record.masks) for record, _ in records("coco", report, **coco(tmp_path, boxes))) == 1
    assert report.counts == {"box_without_polygon": 3}


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no segmentation": lambda d: d["annotations"][0].pop("segmentation"),
    "null": lambda d: d["annotations"][0].update(segmentation=None),
    "odd": lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5]]),
    "short RLE": lambda d: d["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": [5]}),
    "orphan": lambda d: d["annotations"][0].update(image_id=99),
    "not an object": lambda d: d["annotations"].append(3),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_annotation_is_left_out_by_name(tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    def change(document: dict[str, Any]) -> None:
        WRONG[wrong](document)
        document["annotations"] = [a if isinstance(a, dict) else {"image_id": "?"} | {"x": 1} for a in document["annotations"]]

    options = coco(tmp_path, change)
    arguments = command("coco", options, "--out", str(tmp_path / "out"))
    with pytest.raises(SystemExit):
        main(arguments)
    assert "'--bad leave_out' leaves out every wrong annotation" in capsys.readouterr().err
    main([*arguments, "--bad", "leave_out"])
    manifest = load_manifest(expand_shards(str(tmp_path / "out"))[0])
    assert manifest.counts["bad_annotation"] == 1
    assert manifest.num_masks == (4 if wrong == "not an object" else 3)
    ((name, _),) = manifest.skipped.items()
    assert "annotation" in name
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["truncated", "tiny", "twice"])
def test_a_wrong_image_is_left_out_by_name(tmp_path: Path, wrong: str) -> None:
    options = coco(tmp_path, lambda d: d["images"].append({**d["images"][1], "id": 77}) if wrong == "twice" else None)
    path = tmp_path / "images" / "b.jpg"
    if wrong == "tiny":
        Image.new("RGB", (4, 4)).save(path)
    elif wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(Exception, match=r"b\.jpg.*--bad leave_out"):
        records("coco", **options)
    report = ImportReport()
    found = records("coco", report, **options, bad="leave_out")
    assert len(found) == (2 if wrong == "twice" else 1)
    assert report.counts["bad_image"] == 1
    assert "b.jpg" in next(iter(report.left_out))


def test_coco_reads_numbers_as_tools_write_them(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        image, other = document["images"]
        image |= {"id": "1", "width": 30.0, "height": "20"}
        other["id"] = "b.jpg"
        first, second, third, fourth = document["annotations"]
        first |= {"image_id": "1", "category_id": 7.0}
        second |= {"image_id": 1.0, "id": first["id"]}
        second["segmentation"] = [[[15, 11], [28, 11], [28, 18], [15, 18]]]
        third |= {"image_id": "b.jpg", "segmentation": third["segmentation"][0]}
        fourth["image_id"] = "b.jpg"
        del fourth["id"]
        document["categories"] = [{"id": "7", "name": 5}, {"id": 8.0, "name": "dog"}]

    report = ImportReport()
    (first, _), (second, _) = records("coco", report, **coco(tmp_path, change))
    assert [mask.name for mask in (*first.masks, *second.masks)] == ["5", "dog", "5", "dog"]
    for record in (first, second):
        assert len({mask.id for mask in record.masks}) == 2
        for mask, number in zip(masks_of(record), (0, 1), strict=True):
            np.testing.assert_array_equal(mask, object_mask(number))
    assert report.counts["mask_id_changed"] == report.counts["mask_id_assigned"] == 1
    assert report.counts["polygon_normalised"] == 2
    assert report.counts["number_normalised"] >= 4


def test_categories_may_be_null(tmp_path: Path) -> None:
    found = records("coco", **coco(tmp_path, lambda d: d.update(categories=None)))
    assert [mask.name for record, _ in found for mask in record.masks] == [""] * 4


@pytest.mark.parametrize(
    "name", ["C:\\data\\images\\sub\\a.jpg", "sub\\a.jpg", "/home/me/images/sub/a.jpg", "sub/A.JPG", "sub/a\u0301.jpg"]
)
def test_coco_finds_images_by_the_names_that_tools_write(tmp_path: Path, name: str) -> None:
    accented = "\u0301" in name
    options = coco(tmp_path, lambda d: d["images"][0].update(file_name=name))
    save(tmp_path / "images" / "sub" / ("\u00e1.jpg" if accented else "a.jpg"))
    report = ImportReport()
    assert len(records("coco", report, **options)) == 2
    assert report.counts["file_name_normalised"] == ("\\" in name or name.startswith("/"))


def test_voc_borders_are_ignored_and_images_without_a_map_left_out(tmp_path: Path) -> None:
    ids = label_map()
    ids[2, :] = 255
    palette = Image.fromarray(ids)
    palette.putpalette([n // 3 for n in range(768)])
    (tmp_path / "labels").mkdir()
    palette.save(tmp_path / "labels" / "a.png")
    for stem in "abc":
        save(tmp_path / "images" / f"{stem}.jpg")
    options = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    report = ImportReport()
    ((record, _),) = records("label_maps", report, **options, missing="leave_out")
    assert [mask.id for mask in record.masks] == [1, 2]
    assert report.counts == {"label_missing": 2, "ignored_value": 1}
    ((record, _),) = records("label_maps", **options, missing="leave_out", ignore=())
    assert [mask.id for mask in record.masks] == [1, 2, 255]
    ((record, _),) = records("label_maps", **options, missing="leave_out", ignore=(1, 255))
    assert [mask.id for mask in record.masks] == [2]


def test_label_maps_of_class_and_instance_codes(tmp_path: Path) -> None:
    ids = label_map().astype(np.uint16)
    ids[ids == 1], ids[ids == 2] = 1007, 10_000
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "labels" / "a.png", ids)
    (tmp_path / "names.txt").write_text("background\ncar\n")
    given = {"names": tmp_path / "names.txt", "class_divisor": 1000, "ignore": (10_000,)}
    ((record, _),) = records("label_maps", images=tmp_path / "images", labels=tmp_path / "labels", **given)
    assert [(mask.id, mask.name) for mask in record.masks] == [(1007, "car")]


LAYOUTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "ade20k": ("in/x.jpg", "in/x_seg.png", {"label_suffix": "_seg", "image_extension": ".jpg"}),
    "mask beside": ("in/x.png", "in/x_mask.png", {"label_suffix": "_mask"}),
    "both suffixes": ("in/x_img.png", "in/x_masks.png", {"image_suffix": "_img", "label_suffix": "_masks"}),
    "tiff": ("in/x.jpg", "labels/x.tif", {}),
    "labels below the images": ("in/x.jpg", "in/labels/x.png", {}),
}


@pytest.mark.parametrize("kind", ["label_maps", "binary_masks", "panoptic"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_labels_are_told_apart_by_suffixes(tmp_path: Path, layout: str, kind: str) -> None:
    image, label, options = LAYOUTS[layout]
    values = {"label_maps": label_map(), "binary_masks": object_mask(0).astype(np.uint8)}.get(kind)
    save(tmp_path / image)
    save(tmp_path / label, np.dstack([label_map(), label_map() * 3, label_map() * 0]) if values is None else values)
    if layout == "ade20k":
        save(tmp_path / "in" / "x_parts_1.png")
    images, labels = (tmp_path / image).parent, (tmp_path / label).parent
    report = ImportReport()
    named = {"masks" if kind == "binary_masks" else "labels": labels}
    ((record, _),) = records(kind, report, images=images, **named, **options)
    assert len(record.masks) == (1 if kind == "binary_masks" else 2)
    assert report.counts == ({"other_file": 1} if layout == "ade20k" else {})


def test_images_and_labels_in_one_folder_need_a_suffix(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    with pytest.raises(Exception, match="tell them apart by --label-suffix"):
        records("label_maps", images=tmp_path, labels=tmp_path)


def encoded(values: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    if form == "npy":
        np.save(stream, values.astype(np.int32))
        return stream.getvalue()
    image = Image.fromarray(values)
    if form == "RGB":
        image = Image.merge("RGB", [image] * 3)
    elif form in ("LA", "RGBA"):
        image = Image.merge(form, [*[image] * (len(form) - 1), Image.new("L", image.size, 255)])
    elif form == "alpha":
        image = Image.merge("LA", [Image.new("L", image.size, 7), image])
    elif form == "int32":
        image = Image.fromarray(values.astype(np.int32))
    elif form == "float":
        image = Image.fromarray(values.astype(np.float32))
    image.save(stream, "TIFF" if form in ("tiff", "int32", "float") else "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["npy", "tiff", "RGB", "LA", "RGBA", "alpha", "int32", "float", "gray"])
def test_label_maps_of_every_form_without_loss_are_read(tmp_path: Path, form: str) -> None:
    save(tmp_path / "images" / "a.jpg")
    path = tmp_path / "labels" / f"a.{'npy' if form == 'npy' else 'tif' if form in ('tiff', 'int32', 'float') else 'png'}"
    path.parent.mkdir()
    path.write_bytes(encoded(label_map(), form))
    ((record, _),) = records("label_maps", images=tmp_path / "images", labels=tmp_path / "labels")
    for mask, number in zip(masks_of(record), (0, 1), strict=True):
        np.testing.assert_array_equal(mask, object_mask(number))


@pytest.mark.parametrize("kind", ["label_maps", "binary_masks"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_masks_with_gray_levels_need_a_threshold(tmp_path: Path, name: str, kind: str) -> None:
    save(tmp_path / "images" / "a.jpg")
    mask = object_mask(0)
    values = (mask * 255).astype(np.uint8)
    values[9, 3:12] = 100  # a soft edge
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / name, quality=100)
    options = {"images": tmp_path / "images", "masks" if kind == "binary_masks" else "labels": tmp_path / "masks"}
    if name == "a.jpg" or kind == "binary_masks":
        with pytest.raises(Exception, match="--threshold"):
            records(kind, **options)
    ((record, _),) = records(kind, **options, threshold=127)
    np.testing.assert_array_equal(masks_of(record)[0], mask)


def test_yolo_reads_what_exporters_write(tmp_path: Path) -> None:
    options = make_yolo(tmp_path)
    label = tmp_path / "labels" / "a.txt"
    first = label.read_text().splitlines()[0]
    label.write_text("\ufeff" + label.read_text() + f"\n{first}\n", encoding="utf-8")
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "data.yaml").write_bytes(b"\xef\xbb\xbfnames: [no, 1]\n")
    report = ImportReport()
    (record, _), _ = records("yolo", report, **options, names=tmp_path / "data.yaml")
    assert [mask.name for mask in record.masks] == ["no", "1"]
    assert report.counts == {"duplicate_line": 1, "other_file": 1}
    (tmp_path / "data.yaml").write_text('names: {"0": cat, "1": dog}\n')
    (record, _), _ = records("yolo", **options, names=tmp_path / "data.yaml")
    assert [mask.name for mask in record.masks] == ["cat", "dog"]


@pytest.mark.parametrize("layout", ["{split}/images", "images/{split}"])
def test_a_root_with_data_yaml_imports_its_splits(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_yolo(tmp_path / "one")
    for split in ("train", "valid"):
        for name in ("images", "labels"):
            folder = tmp_path / "root" / layout.format(split=split).replace("images", name)
            folder.mkdir(parents=True)
            for path in source[name].iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "root" / "data.yaml").write_text("names: [cat, dog]\n")
    out = tmp_path / "out"
    arguments = ["import", "yolo", "--images", str(tmp_path / "root"), "--out", str(out)]
    if layout.startswith("images"):
        main(arguments)
        assert len(list(iterate_samples(expand_shards(str(out))))) == 4
    else:
        main([*arguments, "--split-folders"])
        for split in ("train", "valid"):
            samples = list(iterate_samples(expand_shards(str(out / split))))
            assert [sample.record.source_file for sample in samples] == [f"{split}/images/a.jpg", f"{split}/images/b.jpg"]
            assert [mask.name for sample in samples for mask in sample.record.masks] == ["cat", "dog"] * 2


def frames(folder: Path) -> dict[str, Path]:
    for video in range(6):
        for frame in range(4):
            save(folder / "images" / f"video_{video}" / f"frame_{frame}.jpg")
            save(folder / "labels" / f"video_{video}" / f"frame_{frame}.png", label_map())
    return {"images": folder / "images", "labels": folder / "labels"}


@pytest.mark.parametrize("rule", ["1", "video_[0-9]+", "(video_[0-9]+)/frame"])
def test_groups_stay_in_one_split(tmp_path: Path, rule: str) -> None:
    arguments = command("label_maps", frames(tmp_path), "--out", str(tmp_path / "out"), "--holdout", "0.5")
    main([*arguments, "--group-by", rule])
    videos = [
        {sample.record.source_file.split("/")[0] for sample in iterate_samples(expand_shards(str(tmp_path / "out" / split)))}
        for split in ("train", "heldout")
    ]
    assert videos[0] | videos[1] == {f"video_{n}" for n in range(6)}
    assert not videos[0] & videos[1]


@pytest.mark.parametrize(
    ("rule", "message"),
    [("7", "is in 1 folders, expected 7"), ("[", "neither a number"), ("nothing", "does not match"), ("0", "from 1")],
)
def test_a_group_rule_that_says_nothing_is_an_error(
    tmp_path: Path, rule: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command("label_maps", frames(tmp_path), "--out", str(tmp_path / "out"), "--holdout", "0.5")
    with pytest.raises(SystemExit):
        main([*arguments, "--group-by", rule])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("first", [[], ["--holdout", "0.5"]])
def test_a_whole_and_a_split_import_do_not_share_a_folder(
    tmp_path: Path, first: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command("label_maps", frames(tmp_path), "--out", str(tmp_path / "out"))
    main([*arguments, *first])
    with pytest.raises(SystemExit):
        main([*arguments, *([] if first else ["--holdout", "0.5"])])
    assert "so that no image is in two sets" in capsys.readouterr().err


def test_an_import_that_finds_no_mask_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("coco", coco(tmp_path, lambda d: d.update(annotations=[])), "--out", str(tmp_path / "out"))
    with pytest.raises(SystemExit):
        main(arguments)
    assert "the import ends with no masks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main([*arguments, "--allow-loss"])
