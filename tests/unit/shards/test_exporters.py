"""Export and re-import: nothing that a format can represent is lost, and everything else is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards import Sample, expand_shards, iterate_samples, write_shard
from sam_train.shards.exporters import EXPORTERS
from sam_train.shards.exporters.polygons import join_rings, mask_to_rings, simplify_ring
from sam_train.shards.importers.label_maps import read_label_map

Pair = tuple[ImageRecord, bytes]


def read(folder: Path) -> dict[str, Sample]:
    return {sample.record.key: sample for sample in iterate_samples(expand_shards(str(folder)))}


def masks_of(record: ImageRecord) -> list[np.ndarray]:
    return [decode_rle(mask.segmentation, height=record.height, width=record.width) for mask in record.masks]


def export(kind: str, shards: Path, out: Path, *more: str) -> dict[str, int]:
    """Run the command and return its counts."""
    main(["export", kind, "--shards", str(shards), "--out", str(out), *more])
    counts: dict[str, int] = json.loads((out / "export.json").read_text())["counts"]
    return counts


def import_back(kind: str, exported: Path, out: Path) -> dict[str, Sample]:
    second = ["--annotations", f"{exported}/instances.json"] if kind == "coco" else ["--labels", f"{exported}/labels"]
    main(["import", kind, "--images", f"{exported}/images", *second, "--out", str(out)])
    return read(out)


def odd_masks(height: int, width: int) -> list[np.ndarray]:
    """Masks with holes, parts that touch at a corner, single pixels, noise, the whole image."""
    rng = np.random.default_rng(height)
    noise = rng.random((3, height, width)) < np.array([0.02, 0.5, 0.98])[:, None, None]
    ring = np.zeros((height, width), bool)
    ring[2:-2, 3:-3] = True
    ring[5:-5, 6:-6] = False
    ring[height // 2, width // 2] = True
    corners = np.zeros((height, width), bool)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    blurred = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 3)
    return [*noise, ring, corners, np.ones((height, width), bool), np.eye(height, width) > 0, blurred > 0.5]


@pytest.fixture
def odd_shards(tmp_path: Path, sample: Callable[..., Pair], mask_record: Callable[..., MaskRecord]) -> Path:
    """Two shards: three images of two sizes with masks of every shape, and one image without masks."""
    samples = []
    for index, (height, width) in enumerate([(37, 53), (64, 40), (41, 41)]):
        record, jpeg = sample(index, height=height, width=width, num_masks=0)
        record.masks.extend(mask_record(m, mask_id=100 * index + n) for n, m in enumerate(odd_masks(height, width), start=1))
        samples.append((record, jpeg))
    write_shard(tmp_path / "shards" / "sa_000000.tar", samples)
    write_shard(tmp_path / "shards" / "sa_000001.tar", [sample(9, num_masks=0)])
    return tmp_path / "shards"


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_round_trip_keeps_every_mask(odd_shards: Path, tmp_path: Path, kind: str) -> None:
    counts = export(kind, odd_shards, tmp_path / "out")
    assert counts == ({} if kind == "coco" else {"mask_with_bridges": counts["mask_with_bridges"]})
    before, after = read(odd_shards), import_back(kind, tmp_path / "out", tmp_path / "back")
    assert list(after) == list(before)
    for key, sample in after.items():
        assert sample.jpeg == before[key].jpeg
        for mask, wanted in zip(masks_of(sample.record), masks_of(before[key].record), strict=True):
            np.testing.assert_array_equal(mask, wanted)


def test_coco_keeps_ids_scores_and_rles(odd_shards: Path, tmp_path: Path) -> None:
    export("coco", odd_shards, tmp_path / "out")
    before, after = read(odd_shards), import_back("coco", tmp_path / "out", tmp_path / "back")
    for key, sample in after.items():
        old = before[key].record
        assert (sample.record.image_id, sample.record.width, sample.record.height) == (old.image_id, old.width, old.height)
        for mask, wanted in zip(sample.record.masks, old.masks, strict=True):
            for name in ("id", "segmentation", "bbox", "area", "predicted_iou", "stability_score"):
                assert getattr(mask, name) == getattr(wanted, name)


def test_pycocotools_reads_the_coco_export(odd_shards: Path, tmp_path: Path) -> None:
    export("coco", odd_shards, tmp_path / "out")
    reference = COCO(str(tmp_path / "out" / "instances.json"))
    assert [category["name"] for category in reference.dataset["categories"]] == ["object"]
    for image in reference.dataset["images"]:
        record = read(odd_shards)[image["file_name"].removesuffix(".jpg")].record
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=[image["id"]]))
        for annotation, mask in zip(annotations, masks_of(record), strict=True):
            np.testing.assert_array_equal(reference.annToMask(annotation).astype(bool), mask)


def test_coco_polygons_have_the_form_that_cvat_and_label_studio_read(odd_shards: Path, tmp_path: Path) -> None:
    """CVAT's format page asks for polygons of instances with iscrowd 0; Label Studio's converter (label_studio_converter/imports/
    coco.py) needs ids, names of categories, sizes of images and bbox, reads the first polygon only and fails on an RLE."""
    before = read(odd_shards)
    counts = export("coco", odd_shards, tmp_path / "out", "--mask-format", "polygons")
    assert counts["mask_with_bridges"] > 3
    document = json.loads((tmp_path / "out" / "instances.json").read_text())
    names = {int(category["id"]): category["name"] for category in document["categories"]}
    images = {image["id"]: image for image in document["images"]}
    read_by_first_outline: dict[str, list[np.ndarray]] = {key: [] for key in before}
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        assert (tmp_path / "out" / "images" / image["file_name"]).is_file()
        assert names[int(annotation["category_id"])] == "object"
        assert (annotation["iscrowd"], len(annotation["bbox"]), annotation["id"] > 0) == (0, 4, True)
        (polygon,) = annotation["segmentation"]
        assert len(polygon) >= 6
        assert len(polygon) % 2 == 0
        rle = coco_mask.frPyObjects([polygon], image["height"], image["width"])[0]
        read_by_first_outline[image["file_name"].removesuffix(".jpg")].append(coco_mask.decode(rle).astype(bool))
    for key, sample in before.items():
        np.testing.assert_array_equal(read_by_first_outline[key], masks_of(sample.record))
    after = import_back("coco", tmp_path / "out", tmp_path / "back")
    for key, sample in before.items():
        np.testing.assert_array_equal(masks_of(after[key].record), masks_of(sample.record))


def test_annotator_work_stays_in_the_provenance(tmp_path: Path, sample: Callable[..., Pair]) -> None:
    """A shard stores origin, clicks and strokes of a mask; a record of an earlier version has none and stays byte-identical."""
    record, jpeg = sample(0, num_masks=2)
    made = {"stage": "assisted_manual", "checkpoint": "", "annotator": "ann", "config": ""}
    plain, edited = Provenance(**made), Provenance(**made, origin="edited", clicks=3, strokes=0)
    record.masks[:] = [replace(mask, provenance=of) for mask, of in zip(record.masks, (plain, edited), strict=True)]
    write_shard(tmp_path / "sa_000000.tar", [(record, jpeg)])
    (back,) = iterate_samples([tmp_path / "sa_000000.tar"])
    assert [mask.provenance for mask in back.record.masks] == [plain, edited]
    first, second = (set(mask["provenance"]) for mask in json.loads(record.to_json())["annotations"])
    assert second - first == {"origin", "clicks", "strokes"}


def yolo_masks(path: Path, height: int, width: int) -> list[np.ndarray]:
    """Decode YOLO lines as an independent reader does."""
    masks = []
    for line in path.read_text().splitlines():
        points = np.array(line.split()[1:], float).reshape(-1, 2) * [width, height]
        masks.append(coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], height, width))[..., 0].astype(bool))
    return masks


def test_other_readers_restore_the_masks_from_yolo_lines(odd_shards: Path, tmp_path: Path) -> None:
    counts = export("yolo", odd_shards, tmp_path / "out")
    assert counts["mask_with_bridges"] > 5
    for key, sample in read(odd_shards).items():
        found = yolo_masks(tmp_path / "out" / "labels" / f"{key}.txt", sample.record.height, sample.record.width)
        for mask, wanted in zip(found, masks_of(sample.record), strict=True):
            np.testing.assert_array_equal(mask, wanted)
    assert (tmp_path / "out" / "data.yaml").read_text() == "train: images\nval: images\nnames:\n  0: object\n"


@pytest.mark.parametrize("width", [640, 6000, 65_500])
def test_six_decimals_restore_masks_of_the_largest_images(width: int) -> None:
    corners = np.arange(width + 1)
    written = np.array([float(f"{number:.6f}") for number in corners / width]) * width
    assert np.abs(written - corners).max() < 0.1, "pycocotools rounds to the next fifth of a pixel"


def test_real_yolo_labels_survive_a_round_trip(tmp_path: Path, shared_dir: Path) -> None:
    folder = shared_dir / "data" / "coco128_seg"
    if not folder.is_dir():
        pytest.skip("COCO-128 is not in the folder `shared` beside the repository")
    before = import_back("yolo", folder, tmp_path / "before")
    export("yolo", tmp_path / "before", tmp_path / "out")
    after = import_back("yolo", tmp_path / "out", tmp_path / "after")
    ious = []
    for key, sample in before.items():
        for mask, wanted in zip(masks_of(after[key].record), masks_of(sample.record), strict=True):
            ious.append((mask & wanted).sum() / (mask | wanted).sum())
    assert len(ious) == 423
    assert min(ious) == 1.0


def test_label_maps_survive_a_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    maps = {}
    for number in range(3):
        blobs = cv2.GaussianBlur(rng.random((50, 70)), (0, 0), 2) > 0.5
        ids = cv2.connectedComponents(blobs.astype(np.uint8))[1].astype(np.uint16) * 731
        maps[f"cell_{number}"] = ids
        Image.fromarray(ids).save(tmp_path / "labels" / f"cell_{number}.png")
        Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(tmp_path / "images" / f"cell_{number}.png")
    import_back("label_maps", tmp_path, tmp_path / "shards")
    assert export("label_maps", tmp_path / "shards", tmp_path / "out") == {}
    for name, ids in maps.items():
        np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "labels" / f"{name}.png"), ids)
    again = import_back("label_maps", tmp_path / "out", tmp_path / "again")
    assert [s.record.masks for s in again.values()] == [s.record.masks for s in read(tmp_path / "shards").values()]


def square(size: int, top: int = 0) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[top : top + size, :size] = True
    return mask


def shard_of(
    tmp_path: Path, masks: dict[int, np.ndarray], sample: Callable[..., Pair], mask_record: Callable[..., MaskRecord]
) -> Path:
    record, jpeg = sample(0, height=20, width=20, num_masks=0)
    record.masks.extend(mask_record(mask, mask_id=number) for number, mask in masks.items())
    write_shard(tmp_path / "shards" / "sa_000000.tar", [(record, jpeg)])
    return tmp_path / "shards"


def test_label_map_draws_smaller_masks_on_top(
    tmp_path: Path, sample: Callable[..., Pair], mask_record: Callable[..., MaskRecord]
) -> None:
    masks = {5: square(3), 9: square(10), 2: square(10), 7: square(4, top=15), 8: np.zeros((20, 20), bool)}
    counts = export("label_maps", shard_of(tmp_path, masks, sample, mask_record), tmp_path / "out")
    expected = np.zeros((20, 20), np.uint16)
    expected[:10, :10], expected[:3, :3], expected[15:19, :4] = 2, 5, 7
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "labels" / "sa_000000.png"), expected)
    assert counts == {"mask_wholly_hidden": 1, "mask_partly_hidden": 1, "pixels_hidden": 109, "mask_without_pixels": 1}


def test_label_map_renumbers_ids_that_do_not_fit(
    tmp_path: Path, sample: Callable[..., Pair], mask_record: Callable[..., MaskRecord]
) -> None:
    masks = {70_000: square(3), 1: square(4, top=10)}
    counts = export("label_maps", shard_of(tmp_path, masks, sample, mask_record), tmp_path / "out")
    assert counts == {"renumbered": 1}
    ids = read_label_map(tmp_path / "out" / "labels" / "sa_000000.png")
    assert (ids == 1).sum() == 9
    assert (ids == 2).sum() == 16


def test_empty_mask_has_no_polygon(tmp_path: Path, sample: Callable[..., Pair], mask_record: Callable[..., MaskRecord]) -> None:
    masks = {1: np.zeros((20, 20), bool), 2: square(2)}
    counts = export("yolo", shard_of(tmp_path, masks, sample, mask_record), tmp_path / "out")
    assert counts == {"mask_without_pixels": 1}
    assert (tmp_path / "out" / "labels" / "sa_000000.txt").read_text() == "0 0 0 0.1 0 0.1 0.1 0 0.1\n"


@pytest.mark.parametrize("kind", ["coco", "label_maps", "yolo"])
def test_images_with_the_same_name_do_not_overwrite_each_other(tmp_path: Path, sample: Callable[..., Pair], kind: str) -> None:
    jpegs = []
    for shard in range(3):
        record, jpeg = sample(shard)
        record = ImageRecord(key="Same" if shard else "same", image_id=1, width=64, height=48, masks=record.masks)
        write_shard(tmp_path / "shards" / f"sa_{shard:06d}.tar", [(record, jpeg)])
        jpegs.append(jpeg)
    counts = export(kind, tmp_path / "shards", tmp_path / "out")
    assert counts["renamed"] == 2
    names = ["same", "Same_2", "Same_3"]
    assert [(tmp_path / "out" / "images" / f"{name}.jpg").read_bytes() for name in names] == jpegs
    after = import_back(kind, tmp_path / "out", tmp_path / "back")
    assert {key: sample.jpeg for key, sample in after.items()} == dict(zip(names, jpegs, strict=True))
    if kind == "coco":
        assert counts["image_id_changed"] == 2
        assert sorted(sample.record.image_id for sample in after.values()) == [1, 2, 3]


@pytest.mark.parametrize("kind", EXPORTERS)
def test_rejects_a_folder_with_another_export(
    tmp_path: Path, tiny_shard: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "out", "JPEGImages" if kind == "voc" else "images"
    export(kind, tiny_shard.parent, out)
    assert "3 images, 3 masks" in capsys.readouterr().out
    files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert b"images" in files[Path("export.json")]
    assert str(tmp_path).encode() not in b"".join(files.values())
    with pytest.raises(SystemExit):
        export(kind, tiny_shard.parent, out)
    assert "empty --out" in capsys.readouterr().err

    (out / "export.json").unlink()  # as after an interrupted export
    export(kind, tiny_shard.parent, out)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == files

    (out / "export.json").unlink()
    (out / images / "other.jpg").write_bytes(b"")
    with pytest.raises(SystemExit):
        export(kind, tiny_shard.parent, out)
    assert "not written by this export" in capsys.readouterr().err
    (out / images / "other.jpg").unlink()
    (out / images / "sa_000000.jpg").write_bytes(b"another")
    with pytest.raises(SystemExit):
        export(kind, tiny_shard.parent, out)
    assert "other content" in capsys.readouterr().err


@pytest.mark.parametrize("kind", EXPORTERS)
def test_rejects_a_mask_of_another_size(
    tmp_path: Path, kind: str, sample: Callable[..., Pair], capsys: pytest.CaptureFixture[str]
) -> None:
    record, jpeg = sample(0)
    record.masks[0].segmentation["counts"] = "1"
    write_shard(tmp_path / "shards" / "sa_000000.tar", [(record, jpeg)])
    with pytest.raises(SystemExit):
        export(kind, tmp_path / "shards", tmp_path / "out")
    assert "sa_000000" in capsys.readouterr().err
    assert not (tmp_path / "out" / "export.json").exists()
    assert not (tmp_path / "out" / "instances.json").exists()


@pytest.mark.parametrize("kind", EXPORTERS)
def test_rejects_an_empty_folder(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export(kind, tmp_path, tmp_path / "out")
    assert "tar" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_polygons_restore_random_masks() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = rng.integers(1, 14, 2)
        mask = rng.random((height, width)) < rng.random()
        rings = mask_to_rings(mask)
        assert (len(rings) == 0) == (not mask.any())
        if not rings:
            continue
        assert all(len(ring) >= 4 for ring in rings)
        polygon = join_rings(rings).astype(float).ravel().tolist()
        found = coco_mask.decode(coco_mask.frPyObjects([polygon], int(height), int(width)))[..., 0]
        np.testing.assert_array_equal(found.astype(bool), mask)


def test_opencv_keeps_holes_of_polygons_with_bridges_open() -> None:
    mask = np.zeros((60, 60), bool)
    mask[5:55, 5:55] = True
    mask[20:40, 20:40] = False
    (polygon,) = [join_rings(mask_to_rings(mask))]
    painted = np.zeros((60, 60), np.uint8)
    cv2.fillPoly(painted, [polygon.astype(np.int32)], 1)
    assert painted[22:38, 22:38].sum() == 0
    assert (painted.astype(bool) ^ mask).sum() < 300, "fillPoly also draws the border, one pixel wide"


def test_tolerance_removes_corners(tmp_path: Path) -> None:
    disc = np.hypot(*(np.mgrid[:100, :100] - 50)) < 40
    (ring,) = mask_to_rings(disc)
    fewer = simplify_ring(ring, 1.0)
    assert len(fewer) < len(ring) / 3
    (rle,) = coco_mask.frPyObjects([fewer.astype(float).ravel().tolist()], 100, 100)
    assert coco_mask.iou([rle], [{**encode_rle(disc), "counts": encode_rle(disc)["counts"].encode()}], [0])[0, 0] > 0.95
    (pixel,) = mask_to_rings(np.eye(1) > 0)
    assert len(simplify_ring(pixel, 50.0)) == 4, "a small mask keeps its ring"
