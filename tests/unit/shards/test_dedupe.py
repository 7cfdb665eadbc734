"""sam-data dedupe and split: duplicates are found, other images are not, and no duplicate is in two splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import pytest

from sam_train.cli.commands import data as main
from sam_train.records import ImageRecord
from sam_train.shards import encode_jpeg, expand_shards, iterate_samples, load_manifest, write_shard
from sam_train.shards.maintenance.dedupe import find_duplicates
from sam_train.shards.maintenance.duplicate_groups import (
    DEFAULT_THRESHOLD,
    MAX_THRESHOLD,
    DuplicateGroups,
    find_close_pairs,
    fingerprint,
    hamming_distances,
)
from sam_train.shards.maintenance.validate import validate
from sam_train.shards.split_hash import is_held_out

Image = np.ndarray
Changed = Callable[[Image], bytes]


def scene(seed: int, *, height: int = 120, width: int = 160) -> Image:
    """Return random blobs whose contrast decreases with their size, as in photographs: HWC uint8 RGB."""
    random = np.random.default_rng(seed)
    octaves = [random.normal(0, 90 / 2**octave, (4 << octave, 5 << octave, 3)) for octave in range(5)]
    layers = [cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC) for octave in octaves]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def scaled(image: Image, factor: float) -> Image:
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind)


CHANGES: dict[str, Changed] = {
    "quality 20": lambda image: encode_jpeg(image, 20),
    "half": lambda image: encode_jpeg(scaled(image, 0.5)),
    "a quarter": lambda image: encode_jpeg(scaled(image, 0.25)),
    "twice": lambda image: encode_jpeg(scaled(image, 2)),
    "half at quality 50": lambda image: encode_jpeg(scaled(image, 0.5), 50),
    "brighter": lambda image: encode_jpeg(cv2.convertScaleAbs(image, alpha=1.1, beta=8)),
}


def record(key: str, image: Image, image_id: int) -> tuple[ImageRecord, bytes]:
    height, width = image.shape[:2]
    return ImageRecord(key=key, image_id=image_id, width=width, height=height, masks=[]), encode_jpeg(image)


def write(path: Path, seeds: dict[str, int], factor: float = 1) -> Path:
    """Write a shard of the scenes with these seeds, by key; a negative seed scales its scene to half the size."""
    scenes = {key: scaled(scene(abs(seed)), 0.5 if seed < 0 else factor) for key, seed in seeds.items()}
    write_shard(path, [record(key, image, crc32(key.encode())) for key, image in scenes.items()])
    return path


def command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def keys_in(folder: Path) -> list[str]:
    return [sample.record.key for sample in iterate_samples(expand_shards(str(folder)))]


@pytest.mark.parametrize("name", CHANGES)
def test_changed_image_is_a_duplicate(name: str) -> None:
    for seed in range(12):
        image = scene(seed)
        assert hamming_distances(fingerprint(encode_jpeg(image)), fingerprint(CHANGES[name](image))) <= DEFAULT_THRESHOLD


@pytest.mark.parametrize("threshold", [0, 15, 16, 31, 39, MAX_THRESHOLD])
def test_finds_exactly_the_close_pairs(threshold: int) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (160, 256)).astype(np.uint8)
    for place in range(80, 160):  # copies with 0 to 79 bits flipped
        bits[place] = bits[place - 80]
        bits[place, random.choice(256, place - 80, replace=False)] ^= 1
    prints = np.packbits(bits, axis=1).view(np.uint64)
    i, j, distance = find_close_pairs(prints, threshold)
    apart = (bits[:, None] != bits[None]).sum(-1)
    expected = {(a, b, apart[a, b]) for a in range(160) for b in range(a + 1, 160) if apart[a, b] <= threshold}
    assert set(zip(i.tolist(), j.tolist(), distance.tolist(), strict=True)) == expected
    assert len(i) == len(expected)


def test_rejects_thresholds_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for threshold in (-1, MAX_THRESHOLD + 1):
        with pytest.raises(ValueError, match="threshold"):
            find_close_pairs(np.zeros((2, 4), np.uint64), threshold)
        assert command("dedupe", write(tmp_path / "a.tar", {"a": 1}), "--threshold", threshold) == 1
        assert "--threshold is" in capsys.readouterr().err


def chain(*flipped: int) -> list[np.ndarray]:
    """Return fingerprints whose first bits are set, as many as given."""
    return [np.packbits(np.arange(256) < count).view(np.uint64) for count in flipped]


def test_each_image_of_a_chain_is_close_to_a_kept_one() -> None:
    near = DuplicateGroups.from_fingerprints(chain(0, 30, 60, 60, 200, 0), 31)
    assert near.representatives(0).tolist() == [0, 0, 2, 2, 4, 0]
    assert near.representatives(2).tolist() == [0, 1, 1, 1, 4, 0]
    assert near.components().tolist() == [0, 0, 0, 0, 4, 0]
    assert DuplicateGroups.from_fingerprints([], 31).components().tolist() == []


def test_prints_and_writes_groups_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "in" / "a.tar", {"a": 1, "b": 2, "c": -1})
    second = write(tmp_path / "in" / "b.tar", {"d": 3, "e": 1})
    assert command("dedupe", tmp_path / "in", "--json", tmp_path / "found.json") == 1
    assert "5 images: 2 duplicates" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    (group,) = found["groups"]
    assert group["kept"] == {"shard": str(first), "key": "a"}
    assert [(item["shard"], item["key"]) for item in group["duplicates"]] == [(str(first), "c"), (str(second), "e")]
    assert all(item["distance"] <= DEFAULT_THRESHOLD for item in group["duplicates"])
    assert (found["num_images"], found["num_duplicates"], found["num_leaks"], found["unreadable"]) == (5, 2, 0, [])
    assert command("dedupe", second) == 0


def test_writes_shards_without_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "a.tar", {"a": 1, "b": 2, "c": -1})
    write(tmp_path / "in" / "b.tar", {"d": 3, "e": 1})
    out = tmp_path / "out"
    assert command("dedupe", tmp_path / "in", "--out", out) == 0
    assert keys_in(out) == ["a", "b", "d"]
    assert [load_manifest(shard).skipped for shard in expand_shards(str(out))] == [{"c": "duplicate"}, {"e": "duplicate"}]
    assert validate(expand_shards(str(out)))[0] == []
    assert command("dedupe", out) == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert command("dedupe", tmp_path / "in", "--out", out) == 0
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    assert command("dedupe", tmp_path / "in", "--out", out, "--threshold", 3) == 1
    assert "with another result" in capsys.readouterr().err
    assert command("dedupe", tmp_path / "in", "--out", tmp_path / "in") == 1


def test_finds_images_of_the_other_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train" / "a.tar", {"a": 1, "b": 2, "c": 3, "d": -3})
    validation = write(tmp_path / "val" / "a.tar", {"x": -2, "y": 5, "z": -5})
    assert command("dedupe", train, "--against", validation) == 1
    shown = capsys.readouterr().out
    assert "4 images: 1 duplicates, 1 in the other set" in shown
    assert f"{train} b is also in the other set: {validation} x" in shown
    (leak,) = [item for item in find_duplicates([train], [validation], threshold=31).duplicates if item.leak]
    assert (leak.location.key, leak.kept.key) == ("b", "x")
    assert command("dedupe", train, "--against", validation, "--out", tmp_path / "out") == 0
    assert keys_in(tmp_path / "out") == ["a", "c"]
    assert command("dedupe", tmp_path / "out", "--against", validation) == 0
    assert command("dedupe", train, "--against", tmp_path / "train") == 1
    assert "give two different sets" in capsys.readouterr().err


def test_reports_images_that_do_not_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, jpeg = record("a", scene(1), 1)
    write_shard(tmp_path / "a.tar", [(whole, jpeg), (record("b", scene(2), 2)[0], b"not an image")])
    assert command("dedupe", tmp_path / "a.tar") == 0
    assert "1 images do not decode" in capsys.readouterr().out
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:900])
    assert command("dedupe", tmp_path / "b.tar") == 1
    assert "sam-data repair" in capsys.readouterr().err


def split(out: Path, *more: object, source: Path) -> int:
    return command("split", source, "--out", out, "--fractions", "train=0.5", "val=0.3", "test=0.2", *more)


def test_split_depends_only_on_the_key(tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "a.tar", {f"image_{n}": n for n in range(40)})
    assert split(tmp_path / "out", "--images-per-shard", 7, source=source) == 0
    found = {name: keys_in(tmp_path / "out" / name) for name in ("train", "val", "test")}
    assert sorted(key for keys in found.values() for key in keys) == sorted(keys_in(source))
    assert all(is_held_out(key, holdout=0.2, seed=0) == (key in found["test"]) for key in keys_in(source))
    assert all(is_held_out(key, holdout=0.5, seed=0) == (key not in found["train"]) for key in keys_in(source))
    manifest = load_manifest(expand_shards(str(tmp_path / "out" / "val"))[0])
    assert manifest.provenance == {
        "stage": "split",
        "fractions": {"train": 0.5, "val": 0.3, "test": 0.2},
        "seed": 0,
        "split": "val",
    }


def test_split_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in" / "a.tar", {f"image_{n}": n for n in range(40)})
    split(tmp_path / "out", "--images-per-shard", 7, source=source)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    next((tmp_path / "out" / "train").glob("*1.manifest.json")).unlink()
    assert split(tmp_path / "out", "--images-per-shard", 7, source=source) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    assert "already existed" in capsys.readouterr().out
    assert split(tmp_path / "out", "--images-per-shard", 7, "--seed", 1, source=source) == 1
    assert "empty --out" in capsys.readouterr().err


def test_split_keeps_near_duplicates_together(tmp_path: Path) -> None:
    seeds = {f"image_{n}": n % 20 * (1 if n < 20 else -1) for n in range(1, 40) if n != 20}
    source = write(tmp_path / "in" / "a.tar", seeds)
    split(tmp_path / "apart", source=source)
    split(tmp_path / "together", "--together", "dedupe", source=source)
    leaks = {}
    for folder in ("apart", "together"):
        sides = {name: expand_shards(str(tmp_path / folder / name)) for name in ("train", "val", "test")}
        pairs = [("train", "val"), ("train", "test"), ("val", "test")]
        leaks[folder] = sum(d.leak for a, b in pairs for d in find_duplicates(sides[a], sides[b], threshold=31).duplicates)
    assert leaks["apart"] > 0
    assert leaks["together"] == 0


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        (["train=0.5"], "add up to 0.5"),
        (["train=0.5", "train=0.5"], "unique names"),
        (["train"], "expected NAME=FRACTION"),
        (["train=x", "val=1"], "expected NAME=FRACTION"),
        (["../up=0.5", "val=0.5"], "expected NAME=FRACTION"),
        (["train=1.5", "val=-0.5"], "expected NAME=FRACTION"),
        (["train=nan", "val=0.5"], "expected NAME=FRACTION"),
        (["train=0.999999999", "val=0.000000001"], "no image fell into val"),
    ],
)
def test_rejects_invalid_fractions(
    tmp_path: Path, fractions: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in" / "a.tar", {"a": 1})
    assert command("split", source, "--out", tmp_path / "out", "--fractions", *fractions) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_split_rejects_repeated_keys_and_its_own_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train" / "a.tar", {"a": 1})
    write(tmp_path / "train" / "b.tar", {"a": 2})
    assert split(tmp_path / "out", source=tmp_path / "train") == 1
    assert "keys occur more than once" in capsys.readouterr().err
    assert split(tmp_path, source=tmp_path / "train") == 1
    assert "give another --out" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["nuclei/images/*.png", "coco128_seg/images/*.jpg", "bsds500/images/*/*.jpg"])
def test_real_images_have_no_false_duplicates(shared_dir: Path, pattern: str) -> None:
    """Different images are no duplicates, and resized or recompressed ones are."""
    paths = sorted((shared_dir / "data").glob(pattern))
    assert len(paths) > 50
    images = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths[:: max(1, len(paths) // 60)]]
    prints = [fingerprint(encode_jpeg(image)) for image in images]
    apart = hamming_distances(np.stack(prints)[:, None], np.stack(prints)[None])
    assert apart[np.triu_indices(len(prints), 1)].min() > 2 * DEFAULT_THRESHOLD
    for name, changed in CHANGES.items():
        found = [hamming_distances(fingerprint(changed(image)), was) for image, was in zip(images, prints, strict=True)]
        assert max(found) <= DEFAULT_THRESHOLD, name
