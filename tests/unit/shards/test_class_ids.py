"""Class ids: stable over the splits of a data set, and the source's own after a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from import_data_sets import command, instances, make_yolo, polygon, save, save_json
from pycocotools.coco import COCO

from sam_train.cli.commands import data as main
from sam_train.shards import expand_shards, load_manifest
from sam_train.shards.class_names import read_class_names
from sam_train.shards.manifest import read_categories

CATEGORIES = {3: "zebra", 7: "cat", 8: "dog", 90: "unused"}


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A COCO data set whose images have one class each, imported in two sets; one class is unused."""
    document = instances(tuple("abcdef"))
    for number, annotation in enumerate(document["annotations"]):
        annotation["category_id"] = (8, 7, 3)[number // 2 % 3]
        annotation["segmentation"] = [[side for point in polygon(number % 2) for side in point]]
    document["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    for stem in "abcdef":
        save(tmp_path / "in" / f"{stem}.jpg")
    options = {"images": tmp_path / "in", "annotations": save_json(tmp_path / "in.json", document)}
    main(command("coco", options, "--out", str(tmp_path / "shards"), "--holdout", "0.4", "--images-per-shard", "1"))
    return tmp_path / "shards"


def export(kind: str, shards: Path, out: Path, *more: str) -> Path:
    main(["export", kind, "--shards", *map(str, shards.glob("**/*.tar")), "--out", str(out), *more])
    return out


def coco_document(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "instances.json").read_text())
    return document


def test_exports_of_all_splits_have_the_ids_of_the_source(imported: Path, tmp_path: Path) -> None:
    names = {}
    for split in ("train", "heldout"):
        document = coco_document(export("coco", imported / split, tmp_path / split))
        assert {c["id"]: c["name"] for c in document["categories"]} == CATEGORIES
        names |= {a["id"]: a["category_id"] for a in document["annotations"]}
    source = json.loads((tmp_path / "in.json").read_text())
    assert names == {a["id"]: a["category_id"] for a in source["annotations"]}


def test_ids_survive_a_split_a_repair_and_a_second_import(imported: Path, tmp_path: Path) -> None:
    shards = [str(path) for path in imported.glob("**/*.tar")]
    for number, shard in enumerate(shards):
        Path(shard).with_suffix(".masks.parquet").unlink()
        main(["repair", shard, "--out", str(tmp_path / "repaired" / str(number))])
    repaired = [str(path) for path in (tmp_path / "repaired").glob("*/*.tar")]
    main(["split", *repaired, "--out", str(tmp_path / "sets"), "--fractions", "x=0.5", "y=0.5", "--seed", "2"])
    for split in ("x", "y"):
        found = expand_shards(str(tmp_path / "sets" / split))
        assert read_categories(found) == CATEGORIES
        assert all((load_manifest(shard).source_files or [""])[0].endswith(".jpg") for shard in found)
    again = export("coco", tmp_path / "sets" / "x", tmp_path / "again")
    options = {"images": again / "images", "annotations": again / "instances.json"}
    main(command("coco", options, "--out", str(tmp_path / "back")))
    assert read_categories(expand_shards(str(tmp_path / "back"))) == CATEGORIES


def test_yolo_classes_are_consecutive_and_complete(imported: Path, tmp_path: Path) -> None:
    for split in ("train", "heldout"):
        out = export("yolo", imported / split, tmp_path / split)
        assert read_class_names(out / "data.yaml") == dict(enumerate(CATEGORIES.values()))


def test_yolo_numbers_become_coco_ids_from_1(tmp_path: Path) -> None:
    options = make_yolo(tmp_path / "in")
    (tmp_path / "names.txt").write_text("cat\ndog\nunused\n")
    main(command("yolo", options, "--names", str(tmp_path / "names.txt"), "--out", str(tmp_path / "shards")))
    document = coco_document(export("coco", tmp_path / "shards", tmp_path / "coco"))
    assert {c["id"]: c["name"] for c in document["categories"]} == {1: "cat", 2: "dog", 3: "unused"}


def test_a_file_of_class_names_decides_the_category_ids(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("names: {1: cat, 5: dog, 9: zebra}\n")
    document = coco_document(export("coco", imported / "train", tmp_path / "out", "--names", str(tmp_path / "names.yaml")))
    assert {c["id"]: c["name"] for c in document["categories"]} == {1: "cat", 5: "dog", 9: "zebra"}


def test_data_sets_that_disagree_are_numbered_by_name(imported: Path, tmp_path: Path) -> None:
    options = make_yolo(tmp_path / "yolo")
    (tmp_path / "names.txt").write_text("dog\ncat\nunused\nbird\n")
    main(command("yolo", options, "--names", str(tmp_path / "names.txt"), "--out", str(imported / "more")))
    document = coco_document(export("coco", imported, tmp_path / "out"))
    assert {c["id"]: c["name"] for c in document["categories"]} == {1: "cat", 2: "dog", 3: "zebra"}


def test_pycocotools_prints_the_info_of_an_export(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export("coco", imported / "train", tmp_path / "out")
    COCO(str(out / "instances.json")).info()
    assert "description: Exported by sam-data" in capsys.readouterr().out
