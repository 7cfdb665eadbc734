"""sam-data card: it agrees with manifests and tables, and escapes all texts of the data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_sample

from sam_train.cli.commands import data as main
from sam_train.records import Provenance
from sam_train.shards import write_shard
from sam_train.shards.maintenance.dataset_card.facts import MaskSource, read_dataset_facts
from sam_train.shards.maintenance.dataset_card.readme import cell, code
from sam_train.shards.mask_table import MASK_TABLE_COLUMNS, mask_table_path

AUTOMATIC = Provenance(stage="fully_automatic", checkpoint="ab" * 32, annotator="automatic", config="0123", prompts=[[1, 2, 1]])
BY_HAND = Provenance(stage="assisted_manual", checkpoint="", annotator="p|1", config="", prompts=[[1, 2, 1]] * 3, seconds=8.0)


def write_set(folder: Path) -> Path:
    """Two shards of two images each: one automatic mask per image in the first, and one more drawn by hand in the second."""
    for shard in range(2):
        samples = []
        for index in (2 * shard, 2 * shard + 1):
            record, jpeg = make_sample(index)
            masks = [replace(m, provenance=p) for m, p in zip(record.masks, (AUTOMATIC, BY_HAND), strict=True)]
            samples.append((replace(record, masks=masks[: 1 + shard]), jpeg))
        write_shard(
            folder / f"sa_00000{shard}.tar",
            samples,
            skipped={f"x{shard}.jpg": "too_small"},
            counts={"nms": 5, "seconds": 1.5},
            provenance={"stage": "a `b`", "checkpoint": "c"},
        )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set with its card."""
    return card(write_set(tmp_path_factory.mktemp("finished")))


def card(folder: Path, *options: str) -> Path:
    main(["card", str(folder), "--out", str(folder), "--name", "My set", *options])
    return folder


def test_summary_covers_all_shards(folder: Path) -> None:
    facts = read_dataset_facts(sorted(folder.glob("*.tar")))
    assert (facts.num_images, facts.num_masks) == (4, 6)
    assert facts.counts == {"nms": 10, "seconds": 3.0}
    assert facts.skipped == {"too_small": 2}
    assert facts.made_by == [{"stage": "a `b`", "checkpoint": "c"}], "equal ones once"
    names = {"stage": "fully_automatic", "annotator": "automatic", "checkpoint": "ab" * 32, "config": "0123"}
    assert facts.sources[0] == MaskSource(**names, num_masks=4, num_prompts=4, seconds=0)
    assert (facts.sources[1].num_masks, facts.sources[1].num_prompts, facts.sources[1].seconds) == (2, 6, 16)


def test_document_lists_every_file_with_its_hash(finished: Path) -> None:
    document = json.loads((finished / "croissant.json").read_text())
    files = {entry["@id"]: entry for entry in document["distribution"] if entry["@type"] == "cr:FileObject"}
    assert set(files) == {path.name for pattern in ("*.tar", "*.parquet") for path in finished.glob(pattern)}
    for name, entry in files.items():
        data = (finished / entry["contentUrl"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest(), name
        assert entry["contentSize"] == f"{len(data)} B"


def test_references_of_the_document_exist(finished: Path) -> None:
    document = json.loads((finished / "croissant.json").read_text())
    ids = [entry["@id"] for entry in document["distribution"]]
    assert len(set(ids)) == len(ids)
    for entry in document["distribution"]:
        assert {part["@id"] for part in entry.get("containedIn", ())} <= set(ids)
    records = {record["@id"]: record for record in document["recordSet"]}
    assert set(records) == {"image", "mask"}
    for record in records.values():
        for field in record["field"]:
            assert field["source"]["fileSet"]["@id"] in ids
            assert field["@id"].startswith(record["@id"] + "/")
    columns = {field["source"]["extract"]["column"]: field["dataType"] for field in records["mask"]["field"]}
    assert tuple(columns) == MASK_TABLE_COLUMNS
    assert (columns["stage"], columns["area"], columns["seconds"]) == ("sc:Text", "sc:Integer", "sc:Float")
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert "license" not in document, "unknown values are omitted"


def test_options_appear_in_card_and_document(folder: Path) -> None:
    said = ["--license", "CC0-1.0", "--creator", "Us", "--cite-as", "Us 2026", "--published", "2026-11-22", "--version", "2.1.0"]
    card(
        folder, *said, "--url", "https://example.org/set", "--files-at", "https://example.org/files/", "--description", "Leaves."
    )
    document = json.loads((folder / "croissant.json").read_text())
    assert (document["license"], document["citeAs"], document["version"]) == ("CC0-1.0", "Us 2026", "2.1.0")
    assert (document["creator"]["name"], document["datePublished"], document["description"]) == ("Us", "2026-11-22", "Leaves.")
    assert document["distribution"][0]["contentUrl"] == "https://example.org/files/sa_000000.tar"
    readme = (folder / "README.md").read_text()
    for words in ("# My set", "Leaves.", "| licence | CC0-1.0 |", "| made by | Us |", "2.1.0, 2026-11-22", "Us 2026"):
        assert words in readme


def test_card_lists_the_sources_of_the_masks(finished: Path) -> None:
    readme = (finished / "README.md").read_text()
    assert "| 4 | 6 | 1.5 | 0.00 | 2 |" in readme
    assert "| fully_automatic | automatic | 4 | 66.7 % | 1.0 | 0.0 | abababababab | 0123 |" in readme
    assert "| assisted_manual | p&#124;1 | 2 | 33.3 % | 3.0 | 8.0 | none | none |" in readme
    assert "| too_small | 2 |" in readme
    assert "| nms | 10 |" in readme
    assert """- `{"checkpoint": "c", "stage": "a 'b'"}`""" in readme
    assert "| licence | not stated: ask the provider of the data set |" in readme
    figures = [line.partition("](")[2].rstrip(")") for line in readme.splitlines() if line.startswith("![")]
    assert len(figures) == 6
    assert all((finished / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    assert json.loads((finished / "stats.json").read_text())["num_masks"] == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a&#124;b"),
        ("<img src=x>", "&#60;img src=x&#62;"),
        ("[x](http://y)\n# head", "&#91;x&#93;(http://y)\\n# head"),
        ("\x1b[31m`", "\\x1b&#91;31m&#96;"),
        ("min_area", "min_area"),
    ],
)
def test_texts_from_shards_are_escaped(text: str, expected: str) -> None:
    assert cell(text) == expected
    assert "`" not in code(text)
    assert "\n" not in code(text)


def test_rejects_an_unfinished_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            card(folder, *options)
        assert not (folder / "README.md").exists()
        return capsys.readouterr().err

    assert "--published is 'today', expected a date such as 2026-11-22" in refused("--published", "today")
    tar = folder / "sa_000001.tar"
    tar.write_bytes(tar.read_bytes() + b"x")
    assert "bytes, its manifest " in refused()
    mask_table_path(folder / "sa_000000.tar").unlink()
    assert "no table sa_000000.masks.parquet beside the shard" in refused()
    (folder / "sa_000000.manifest.json").unlink()
    assert "the shard is not complete" in refused()


def test_rejects_a_data_set_without_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "sa_000000.tar", [make_sample(0, num_masks=0)])
    with pytest.raises(SystemExit):
        card(tmp_path)
    assert "no mask in 1 shards: there is nothing to describe" in capsys.readouterr().err
