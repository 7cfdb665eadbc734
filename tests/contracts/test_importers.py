"""The contract of `sam-data import`: what is found is imported, refused or counted; options mean the same for every kind."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import pytest
from import_data_sets import DATA_SETS, command
from PIL import Image
from pyarrow import parquet

from sam_train.cli.commands import data as main
from sam_train.shards import expand_shards, iterate_samples, load_manifest
from sam_train.shards.importers import IMPORTERS
from sam_train.shards.importers.importer import SHARED_OPTIONS
from sam_train.shards.mask_table import mask_table_path
from sam_train.shards.options import add_options

KINDS = list(IMPORTERS)


def run(kind: str, folder: Path, *more: str) -> Path:
    main(command(kind, DATA_SETS[kind](folder / "in"), "--out", str(folder / "out"), *more))
    return folder / "out"


def spoil(kind: str, folder: Path, name: str, data: bytes | None) -> list[str]:
    """Write a data set, replace or remove the files `name`, and return the command that imports it."""
    options = DATA_SETS[kind](folder / "in")
    spoilt = sorted((folder / "in").rglob(name))
    assert spoilt
    for path in spoilt:
        path.unlink() if data is None else path.write_bytes(data)
    return command(kind, options, "--out", str(folder / "out"))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_imported_and_the_source_files_are_recorded(kind: str, tmp_path: Path) -> None:
    (shard,) = expand_shards(str(run(kind, tmp_path)))
    samples = list(iterate_samples([shard]))
    assert [len(sample.record.masks) for sample in samples] == [2, 2]
    manifest = load_manifest(shard)
    assert manifest.counts == {}
    names = manifest.source_files or []
    assert [Path(name).name for name in names] == ["a.jpg", "b.jpg"]
    assert [sample.record.source_file for sample in samples] == names
    assert parquet.read_table(mask_table_path(shard))["source_file"].to_pylist() == [name for name in names for _ in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_image_stops_the_import_or_is_left_out_by_name(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = spoil(kind, tmp_path, "b.jpg", b"\xff\xd8\xff\xe0 no image")
    message = error_of(arguments, capsys)
    assert "b.jpg" in message
    assert "--bad leave_out" in message
    assert not list(tmp_path.glob("out/**/*.*"))
    main([*arguments, "--bad", "leave_out"])
    assert "1 bad_image" in capsys.readouterr().out
    manifest = load_manifest(expand_shards(str(tmp_path / "out"))[0])
    assert [Path(name).name for name in manifest.source_files or []] == ["a.jpg"]
    assert manifest.counts["bad_image"] == 1
    ((name, reason),) = manifest.skipped.items()
    assert "b.jpg" in name
    assert "does not decode" in reason or "readable header" in reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_image_stops_the_import_or_is_left_out_by_name(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = spoil(kind, tmp_path, "b.jpg", None)
    assert "--missing leave_out" in error_of(arguments, capsys)
    main([*arguments, "--missing", "leave_out"])
    manifest = load_manifest(expand_shards(str(tmp_path / "out"))[0])
    assert [Path(name).name for name in manifest.source_files or []] == ["a.jpg"]
    assert manifest.counts["image_missing"] == len(manifest.skipped) >= 1
    assert all("b" in Path(name.split(" in ")[0]).name for name in manifest.skipped)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "min_area" in inspect.signature(IMPORTERS[kind]).parameters])
def test_an_import_that_loses_most_masks_is_an_error_that_names_the_option(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(kind, DATA_SETS[kind](tmp_path / "in"), "--out", str(tmp_path / "out"), "--images-per-shard", "1")
    message = error_of([*arguments, "--min-area", "500"], capsys)
    assert "'below_min_area' leaves out 4 of 4 masks" in message
    assert "lower --min-area" in message
    assert not list(tmp_path.glob("out/**/*.*")), "shards that were written before the loss was known are removed"
    main([*arguments, "--min-area", "500", "--allow-loss"])
    assert len(expand_shards(str(tmp_path / "out"))) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_options_have_the_same_text_for_every_kind(kind: str) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, IMPORTERS[kind], exclude=())
    texts = {action.dest: action.help or "" for action in parser._actions}
    assert {"missing", "bad", "frame"} <= texts.keys()
    for name, text in SHARED_OPTIONS.items():
        assert name not in texts or texts[name].startswith(text), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_states_the_contract(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import", kind, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Each file found and each annotation read is imported, refused by name, or counted by reason." in text
    assert "--bad {stop,leave_out}" in text
    assert "--group-by" in text


@pytest.mark.parametrize("kind", KINDS)
def test_an_orientation_that_nothing_decides_is_counted(kind: str, tmp_path: Path) -> None:
    options = DATA_SETS[kind](tmp_path / "in")
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (tmp_path / "in").rglob("b.jpg"):
        Image.open(path).save(path, exif=exif)
    main(command(kind, options, "--out", str(tmp_path / "out")))
    assert load_manifest(expand_shards(str(tmp_path / "out"))[0]).counts == {"exif_orientation_ambiguous": 1}
