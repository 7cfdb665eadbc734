"""Class names of masks: import from every format, loader, mask tables and export."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_train.cli.commands import data as main
from sam_train.data.collate import collate
from sam_train.data.datamodule import ShardDataModule
from sam_train.data.record_parser import TargetRecord, parse_target_record
from sam_train.data.synthetic import write_corpus
from sam_train.data.synthetic.photographs import PHOTOGRAPH_NAMES
from sam_train.data.synthetic.shapes import SHAPES
from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.shards import Sample, expand_shards, iterate_samples, write_shard
from sam_train.shards.class_names import ClassNumbering, parse_category_names, read_class_names
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.report import ImportReport
from sam_train.shards.mask_table import mask_table_path

Pair = tuple[ImageRecord, bytes]
SOURCE = Provenance(stage="import", checkpoint="", annotator="coco", config="")
HEIGHT, WIDTH = 20, 30


def named(pair: Pair, *names: str | None) -> Pair:
    """Return a record whose masks have these names; None is a mask without provenance."""
    record, jpeg = pair
    sources = [None if name is None else replace(SOURCE, name=name) for name in names]
    masks = [replace(mask, provenance=source) for mask, source in zip(record.masks, sources, strict=True)]
    return replace(record, masks=masks), jpeg


@pytest.fixture
def shards(tmp_path: Path, sample: Callable[..., Pair]) -> Path:
    """Two images: a cat and an unnamed mask; a dog's caption, a cat, and a mask without provenance."""
    first = named(sample(1), "cat", "")
    second = named(sample(2, num_masks=3), "a dog: brown, 'wet' #1", "cat", None)
    write_shard(tmp_path / "shards" / "sa_000000.tar", [first, second])
    return tmp_path / "shards"


def names_in(folder: Path) -> list[list[str]]:
    return [[mask.name for mask in sample.record.masks] for sample in iterate_samples(expand_shards(str(folder)))]


NAMES = [["cat", ""], ["a dog: brown, 'wet' #1", "cat", ""]]


def test_name_survives_a_round_trip_and_no_name_writes_no_key(sample: Callable[..., Pair]) -> None:
    record, _ = named(sample(1), "łódź", "")
    data = record.to_json()
    assert ImageRecord.from_json(data, key=record.key) == record
    first, second = json.loads(data)["annotations"]
    assert first["provenance"]["name"] == "łódź"
    assert set(second["provenance"]) == {"stage", "checkpoint", "annotator", "config", "prompts", "seconds"}, (
        "as in earlier versions"
    )
    assert "name" not in first, "SA-1B's keys stay SA-1B's"
    plain = replace(record, masks=[replace(mask, provenance=replace(SOURCE)) for mask in record.masks])
    assert b'"name"' not in plain.to_json()


def test_rejects_a_name_that_is_not_text(sample: Callable[..., Pair]) -> None:
    record, _ = named(sample(1), "cat", "dog")
    data = record.to_json().replace(b'"dog"', b"3")
    with pytest.raises(ShardError, match="unexpected type int") as caught:
        ImageRecord.from_json(data, key=record.key)
    assert caught.value.field == "annotations[1].provenance.name"
    with pytest.raises(ShardError, match="unexpected type int"):
        parse_target_record(data, key=record.key, names=True)
    assert parse_target_record(data, key=record.key).names is None, "names are parsed on request only"


def test_fast_and_full_record_parsers_read_the_same_names(shards: Path) -> None:
    for sample in iterate_samples(expand_shards(str(shards))):
        data = sample.record.to_json()
        for names in (True, False):
            expected = TargetRecord.from_image_record(sample.record, names=names)
            assert parse_target_record(data, key=sample.record.key, names=names) == expected


def test_batches_carry_names_in_the_order_of_masks(shards: Path, sample: Callable[..., Pair]) -> None:
    """Masks are drawn, turned and dropped; each keeps its own name, identified by its area in the shard."""
    (record, jpeg), areas = sample(5, num_masks=2), {}
    many = [replace(mask, id=n) for n, mask in enumerate(record.masks * 4)]
    record = replace(record, masks=[replace(m, provenance=replace(SOURCE, name=f"{m.area} px")) for m in many])
    tiny = np.zeros((48, 64), bool)
    tiny[0, 0] = True
    record.masks.append(replace(record.masks[0], segmentation=_rle(tiny), area=1, provenance=replace(SOURCE, name="dust")))
    write_shard(shards / "many" / "sa_000001.tar", [(record, jpeg)])
    areas = {f"{mask.area} px": mask.area for mask in record.masks}
    loader = ShardDataModule(
        shards=str(shards / "many"), image_size=64, max_masks=5, min_area_px=4, flip=True, quarter_turns=True, load_names=True
    )
    seen: set[str] = set()
    for position in range(6):
        batch = collate([loader.train_set[position], loader.train_set[position + 1]]).unpack()
        assert batch.names is not None
        assert len(batch.names) == len(batch.target_masks) >= 8
        assert [areas[name] for name in batch.names] == batch.target_masks.sum((1, 2)).tolist()
        one, two = batch.split(1)
        assert one.names is not None
        assert two.names is not None
        assert (one.names + two.names, len(one.names)) == (batch.names, len(one.target_masks))
        assert batch.to("cpu").names == batch.names
        seen.update(batch.names)
    assert seen == {name for name in areas if name != "1 px"}, "dust is dropped for its size, with its name"


def _rle(mask: np.ndarray) -> dict[str, object]:
    from sam_train.rle import encode_rle

    return encode_rle(mask)


def test_batches_have_no_names_by_default(shards: Path) -> None:
    loader = ShardDataModule(shards=str(shards), image_size=64)
    assert collate([loader.train_set[0]]).unpack().names is None


def test_reading_names_changes_neither_images_nor_masks(shards: Path) -> None:
    asked, not_asked = (ShardDataModule(shards=str(shards), image_size=64, load_names=names) for names in (True, False))
    for position in range(4):
        one, two = asked.train_set[position], not_asked.train_set[position]
        np.testing.assert_array_equal(one.masks, two.masks)
        np.testing.assert_array_equal(one.image, two.image)


def test_padding_has_no_names(tmp_path: Path, sample: Callable[..., Pair]) -> None:
    write_shard(tmp_path / "a.tar", [named(sample(1), "cat", "dog"), sample(2, num_masks=0)])
    loader = ShardDataModule(shards=str(tmp_path / "a.tar"), val_shards=str(tmp_path / "a.tar"), image_size=64, load_names=True)
    assert loader.val_set is not None
    batch = collate([loader.val_set[0], loader.val_set[1]]).unpack()
    assert sorted(batch.names or ()) == ["cat", "dog"]
    assert batch.skipped == ("no_mask",)


def test_mask_table_has_names(shards: Path) -> None:
    from pyarrow import parquet

    (shard,) = expand_shards(str(shards))
    assert parquet.read_table(mask_table_path(shard))["name"].to_pylist() == [name for names in NAMES for name in names]


def test_names_survive_a_coco_round_trip(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "coco"
    main(["export", "coco", "--shards", str(shards), "--out", str(out)])
    document = json.loads((out / "instances.json").read_text())
    assert [c["id"] for c in document["categories"]] == [1, 2, 3]
    assert [c["name"] for c in document["categories"]] == ["a dog: brown, 'wet' #1", "cat", "object"]
    assert [a["category_id"] for a in document["annotations"]] == [2, 3, 1, 2, 3]
    paths = ["--images", f"{out}/images", "--annotations", f"{out}/instances.json"]
    main(["import", "coco", *paths, "--out", str(tmp_path / "back")])
    assert names_in(tmp_path / "back") == NAMES


def test_names_survive_a_yolo_round_trip(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "yolo"
    main(["export", "yolo", "--shards", str(shards), "--out", str(out)])
    assert read_class_names(out / "data.yaml") == {0: "a dog: brown, 'wet' #1", 1: "cat", 2: ""}
    paths = ["--images", f"{out}/images", "--labels", f"{out}/labels"]
    main(["import", "yolo", *paths, "--names", f"{out}/data.yaml", "--out", str(tmp_path / "back")])
    assert names_in(tmp_path / "back") == NAMES
    main(["import", "yolo", *paths, "--out", str(tmp_path / "nameless")])
    assert names_in(tmp_path / "nameless") == [["", ""], ["", "", ""]]


def test_yolo_export_uses_the_class_numbers_of_a_file(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a dog: brown, 'wet' #1\nzebra\nobject\ncat\n")
    command = ["export", "yolo", "--shards", str(shards), "--names", f"{tmp_path}/classes.txt", "--out", f"{tmp_path}/out"]
    main(command)
    lines = [path.read_text().splitlines() for path in sorted((tmp_path / "out" / "labels").iterdir())]
    assert [[line.split()[0] for line in of_picture] for of_picture in lines] == [["3", "2"], ["0", "3", "2"]]
    assert read_class_names(tmp_path / "out" / "data.yaml") == read_class_names(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(SystemExit):
        main([*command[:-1], f"{tmp_path}/out2"])


def test_rejects_a_yolo_class_that_the_file_does_not_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0 0 1 0 1 1\n7 0 0 1 0 1 1\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    with pytest.raises(ShardError, match=r"a\.txt, line 2: class 7 is not in the file of class names"):
        list(IMPORTERS["yolo"](tmp_path / "images", tmp_path / "labels", names=tmp_path / "data.yaml"))


def test_categories_that_a_json_does_not_list_are_counted(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    square = {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "image_id": 1, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": n, "category_id": n, **square} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "object"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    counts: Counter[str] = Counter()
    ((record, _),) = IMPORTERS["coco"](tmp_path, tmp_path / "a.json", report=ImportReport(counts=counts))
    assert [mask.name for mask in record.masks] == ["cat", "", ""]
    assert counts == {"category_unknown": 1}


@pytest.mark.parametrize("kind", ["label_maps", "binary_masks"])
def test_name_option_names_every_mask(tmp_path: Path, kind: str) -> None:
    _picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray((np.mgrid[:HEIGHT, :WIDTH][0] > 5).astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    for name in ("nucleus", ""):
        ((record, _),) = IMPORTERS[kind](tmp_path / "images", tmp_path / "labels", name=name)
        assert [mask.name for mask in record.masks] == [name]


def test_imports_panoptic_names(tmp_path: Path) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[0], ids[1:5], ids[5:9], ids[12:] = 3, 7, 26_001, 24_000
    _picture(tmp_path / "city" / "a.png")
    (tmp_path / "city_ids").mkdir()
    Image.fromarray(ids).save(tmp_path / "city_ids" / "a.png")
    ((record, _),) = IMPORTERS["panoptic"](tmp_path / "city", tmp_path / "city_ids", keep_stuff=True)
    assert {mask.id: mask.name for mask in record.masks} == {7: "road", 26_001: "car", 24_000: "person"}
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[:5, :, 0], colours[10:, :, 1] = 9, 2
    (tmp_path / "coco_ids").mkdir()
    Image.fromarray(colours).save(tmp_path / "coco_ids" / "a.png")
    segments = [{"id": 9, "category_id": 4, "iscrowd": 0}, {"id": 512, "category_id": 5, "iscrowd": 0}]
    categories = [{"id": 4, "name": "tree", "isthing": 1}, {"id": 5, "name": "sky", "isthing": 0}]
    document = {"annotations": [{"file_name": "a.png", "segments_info": segments}], "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(document))
    given = {"segments": tmp_path / "panoptic.json", "keep_stuff": True}
    ((record, _),) = IMPORTERS["panoptic"](tmp_path / "city", tmp_path / "coco_ids", **given)
    assert {mask.id: mask.name for mask in record.masks} == {9: "tree", 512: "sky"}


def test_imports_lvis_names(tmp_path: Path, shared_dir: Path) -> None:
    path = shared_dir / "data" / "lvis_val_100" / "lvis_val_100.json"
    if not path.is_file():
        pytest.skip("the LVIS annotations are not in the folder `shared` beside the repository")
    document = json.loads(path.read_text())
    images = document["images"][:3]
    for image in images:
        Image.new("L", (image["width"], image["height"])).save(tmp_path / Path(image["coco_url"]).name)
    document["images"] = images
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in {i["id"] for i in images}]
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    names = {category["id"]: category["name"] for category in document["categories"]}
    wanted = {a["id"]: names[a["category_id"]] for a in document["annotations"]}
    records = [record for record, _ in IMPORTERS["lvis"](tmp_path, tmp_path / "lvis.json")]
    found = {mask.id: mask.name for record in records for mask in record.masks}
    assert len(set(found.values())) > 3
    assert found == {number: wanted[number] for number in found}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: 3", "is not a valid file of class names"),
        ("data.yaml", "train: images", "is not a valid file of class names"),
        ("data.yaml", "names: {a: cat}", "is not a valid file of class names"),
        ("data.yaml", "names: [", "is not a valid file of class names"),
        ("data.yaml", 'names: ["\\x00"]', "class 0: expected a name"),
        ("classes.txt", "\udcff", "is not a valid file of class names"),
        ("classes.txt", "a\x1b[2Jb", "class 0: expected a name"),
        ("classes.txt", "a" * 10_001, "class 0: expected a name"),
    ],
)
def test_rejects_invalid_files_of_class_names(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ShardError, match=message) as caught:
        read_class_names(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(ShardError, match="not a file of class names"):
        read_class_names(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "categories", [{}, [3], [{"id": "x", "name": "a"}], [{"id": 1, "name": None}], [{"id": 1, "name": "a"}] * 2]
)
def test_rejects_invalid_categories(categories: object) -> None:
    with pytest.raises(ShardError, match=r"a\.json"):
        parse_category_names(categories, place="a.json")


def test_numbers_classes_by_name() -> None:
    numbers = ClassNumbering({3: "a", 1: "b", 2: ""})
    assert [numbers.number_of(name, place="") for name in ("b", "", "a", "b")] == [1, 2, 3, 1]
    assert numbers.names == {1: "b", 2: "object", 3: "a"}
    with pytest.raises(ShardError, match="here: the file of class names has no class 'c'"):
        numbers.number_of("c", place="here")


def test_synthetic_masks_are_called_by_shape_and_material(tmp_path: Path) -> None:
    write_corpus(tmp_path, num_images=6, seed=0, height=128, width=128, images_per_shard=6)
    names = [name for names in names_in(tmp_path) for name in names]
    assert len(names) > 20
    assert {name.split()[0] for name in names} <= set(SHAPES)
    assert {name.split()[1] for name in names} <= set(PHOTOGRAPH_NAMES)
    assert len(set(names)) > 10


def test_rejects_resuming_an_import_with_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _picture(tmp_path / "images" / "a.png")
    _picture(tmp_path / "images" / "b.png")
    (tmp_path / "labels").mkdir()
    for stem in "ab":
        (tmp_path / "labels" / f"{stem}.txt").write_text("0 0 0 1 0 1 1\n")
    (tmp_path / "names.txt").write_text("cat\n")
    command = ["import", "yolo", "--images", f"{tmp_path}/images", "--labels", f"{tmp_path}/labels", "--out", f"{tmp_path}/out"]
    main(command)
    main(command)
    assert "(1 already existed)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--names", f"{tmp_path}/names.txt"])
    assert "holds other images or was written with other options" in capsys.readouterr().err
    assert names_in(tmp_path / "out") == [[""], [""]]


def test_maintenance_commands_keep_names(shards: Path, tmp_path: Path) -> None:
    main(["repair", str(shards), "--out", str(tmp_path / "repaired")])
    assert names_in(tmp_path / "repaired") == NAMES
    assert isinstance(next(iterate_samples(expand_shards(str(tmp_path / "repaired")))), Sample)


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)


def test_masks_without_provenance_have_no_name(mask_record: Callable[..., MaskRecord]) -> None:
    assert mask_record(np.ones((4, 4), bool)).name == ""
