"""Synthetic scenes: the same by seed, exact and nested; the corpus on disk: plain SA-1B, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_train.data.synthetic import compose_scene, corpus, photographs, shapes, write_corpus
from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards import load_manifest, manifest_path

SEEDS = range(40)
SIZE = {"height": 160, "width": 200}
SMALL = {"seed": 3, "height": 128, "width": 128, "images_per_shard": 2}


# pycocotools has not yet learnt numpy 2's __array__(copy=...).
decodes_rle = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


def read_tar(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def read_records(path):
    members = read_tar(path)
    return [
        ImageRecord.from_json(data, key=name.removesuffix(".json")) for name, data in members.items() if name.endswith(".json")
    ]


@pytest.fixture(scope="module")
def scenes():
    return [compose_scene(seed, **SIZE) for seed in SEEDS]


def test_equal_seeds_give_equal_scenes_whatever_the_global_state(scenes):
    np.random.seed(1)
    again = compose_scene(SEEDS[5], **SIZE)
    np.testing.assert_array_equal(again.image, scenes[5].image)
    np.testing.assert_array_equal(again.masks, scenes[5].masks)
    assert again.levels == scenes[5].levels


def test_different_seeds_give_different_scenes(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.masks.tobytes() for scene in scenes}) == len(scenes)


def test_shapes_types_and_plenty_of_masks_of_every_level(scenes):
    for scene in scenes:
        assert scene.image.shape == (160, 200, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.levels), 160, 200)
        assert scene.masks.dtype == bool
    levels = np.concatenate([scene.levels for scene in scenes])
    assert set(levels) == {0, 1, 2}
    assert np.mean([len(scene.levels) for scene in scenes]) > 5
    assert np.mean(levels > 0) > 0.3  # else one click would not be ambiguous


def test_no_mask_is_smaller_than_the_floor(scenes):
    assert min(mask.sum() for scene in scenes for mask in scene.masks) >= 0.0015 * 160 * 200


def test_parts_lie_inside_a_smaller_level_and_wholes_do_not_overlap(scenes):
    for scene in scenes:
        levels = np.array(scene.levels)
        assert scene.masks[levels == 0].sum(0).max() == 1
        for mask, level in zip(scene.masks, levels, strict=True):
            if level:
                shared = [(other & mask).sum() for other in scene.masks[levels == level - 1]]
                parent = scene.masks[levels == level - 1][int(np.argmax(shared))]
                assert max(shared) == mask.sum()
                assert mask.sum() <= 0.85 * parent.sum()


def test_an_outline_can_be_seen_in_the_image(scenes):
    """Pixels change more across an outline than one pixel further in, or masks and picture would not be aligned."""
    across, inside = [], []
    for scene in scenes:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        for mask in scene.masks:
            depth = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            across.append(gradient[(depth > 0) & (depth < 1.2)])
            inside.append(gradient[(depth > 3) & (depth < 6)])
    assert np.concatenate(across).mean() > 1.5 * np.concatenate(inside).mean()


def test_rasterised_coverage_is_exact_to_a_quarter_of_a_pixel():
    square = np.array([[10.0, 20.0], [30.5, 20.0], [30.5, 40.25], [10.0, 40.25]])
    coverage = shapes.rasterize_polygon(square, height=64, width=64)
    assert 20.5 * 20.25 - 1 <= coverage.sum() <= 20.75 * 20.5 + 1
    assert (coverage[20:40, 10:30] == 1).all()
    assert coverage[:20].max() <= 0.26
    assert coverage[:, :10].max() <= 0.26
    assert coverage[30, 30] == pytest.approx(0.5, abs=0.26)
    assert not coverage[:, 31:].any()


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_reaches_the_unit_circle(seed):
    outline, shape = shapes.random_polygon(np.random.default_rng(seed))
    assert shape in shapes.SHAPES
    distances = np.linalg.norm(outline, axis=1)
    assert distances.max() == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(32, 320), (320, 40), (100, 500)])
def test_a_size_without_room_is_refused(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        compose_scene(0, height=height, width=width)


def test_true_colours_are_those_of_what_an_object_is_cut_from(scenes):
    """A grey photograph stays grey, where it would otherwise be recoloured."""
    pictures = zip(photographs.PHOTOGRAPH_NAMES, photographs.load_photographs(), strict=True)
    grey = {name for name, pixels in pictures if (pixels[..., 0] == pixels[..., 2]).all()}
    assert {"brick", "gravel", "moon"} <= grey

    def casts(found):
        """Red against blue in what is grey; the median, as parts too small to be kept are painted too."""
        for scene in found:
            for number, (mask, name) in enumerate(zip(scene.masks, scene.names, strict=True)):
                own = mask & ~np.any(scene.masks[number + 1 :], 0) if number + 1 < len(scene.masks) else mask
                if name.split()[1] in grey and own.sum() > 300:
                    yield abs(np.median(scene.image[own, 0].astype(int) - scene.image[own, 2]))

    true = [compose_scene(seed, **SIZE, true_colours=True) for seed in SEEDS]
    assert len(list(casts(true))) > 20
    assert max(casts(true)) <= 4
    assert max(casts(scenes)) > 20


def test_absent_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"skimage.*pip install 'sam-train\[quickstart\]'"):
        photographs.load_photographs.__wrapped__()


def test_absent_photograph_says_which(monkeypatch, tmp_path):
    monkeypatch.setattr(photographs, "_package_folder", lambda package: tmp_path)
    with pytest.raises(ConfigError, match=r"astronaut.png.*pip install"):
        photographs.load_photographs.__wrapped__()


def test_photographs_cannot_be_painted_on():
    with pytest.raises(ValueError, match="read-only"):
        photographs.load_photographs()[0][0, 0] = 0


@decodes_rle
def test_shards_open_with_plain_tarfile_json_and_pycocotools(tmp_path):
    write_corpus(tmp_path, num_images=3, **SMALL)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["syn_3_000000.tar", "syn_3_000001.tar"]
    keys, sizes = [], set()
    for path in sorted(tmp_path.glob("*.tar")):
        members = read_tar(path)
        for name in [name for name in members if name.endswith(".json")]:
            document = json.loads(members[name])
            pixels = cv2.imdecode(np.frombuffer(members[document["image"]["file_name"]], np.uint8), cv2.IMREAD_COLOR)
            height, width = document["image"]["height"], document["image"]["width"]
            assert pixels.shape == (height, width, 3)
            assert max(height, width) == 128
            assert min(height, width) >= 96
            check_annotations(document["annotations"], height, width)
            keys.append(name.removesuffix(".json"))
            sizes.add((height, width))
    assert keys == ["syn_3_000000", "syn_3_000001", "syn_3_000002"]
    assert len(sizes) > 1


def check_annotations(annotations, height, width):
    assert annotations
    for annotation in annotations:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (height, width)
        assert mask.sum() == annotation["area"] > 0
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert annotation["bbox"] == box
        assert annotation["crop_box"] == [0, 0, width, height]
        assert annotation["point_coords"] == []
        assert annotation["predicted_iou"] == annotation["stability_score"] == 1
        assert annotation["provenance"]["stage"] == "import"
        assert annotation["provenance"]["annotator"] == "synthetic"


@decodes_rle
def test_what_is_in_a_shard_is_the_scene(tmp_path, monkeypatch):
    made = []

    def remember(*args, **kwargs):
        made.append(compose_scene(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(corpus, "compose_scene", remember)
    write_corpus(tmp_path, num_images=2, **SMALL)
    shard = tmp_path / "syn_3_000000.tar"
    for scene, record in zip(made, read_records(shard), strict=True):
        decoded = [coco_mask.decode(mask.segmentation).astype(bool) for mask in record.masks]
        np.testing.assert_array_equal(np.stack(decoded), scene.masks)
        pixels = cv2.cvtColor(
            cv2.imdecode(np.frombuffer(read_tar(shard)[f"{record.key}.jpg"], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        assert np.abs(pixels.astype(int) - scene.image).mean() < 4
    counts = load_manifest(shard).counts
    assert counts["wholes"] == sum(scene.levels.count(0) for scene in made)
    assert sum(counts.values()) == sum(len(scene.levels) for scene in made)


def test_corpora_of_different_seeds_share_neither_keys_nor_ids(tmp_path):
    write_corpus(tmp_path, num_images=2, **SMALL)
    write_corpus(tmp_path, num_images=2, **{**SMALL, "seed": 4})
    records = [record for path in sorted(tmp_path.glob("*.tar")) for record in read_records(path)]
    mask_ids = [mask.id for record in records for mask in record.masks]
    assert len({record.key for record in records}) == len({record.image_id for record in records}) == 4
    assert len(set(mask_ids)) == len(mask_ids)


def test_a_restart_keeps_done_shards_and_fills_the_missing_ones(tmp_path, monkeypatch):
    write_corpus(tmp_path, num_images=6, **SMALL)
    shards = sorted(tmp_path.glob("*.tar"))
    before = [path.read_bytes() for path in shards]
    manifest_path(shards[1]).unlink()  # killed between the tar and its manifest
    shards[1].write_bytes(b"torn")
    shards[2].unlink()  # and a tar that somebody removed
    kept_at = shards[0].stat().st_mtime_ns

    composed = []
    monkeypatch.setattr(corpus, "compose_scene", lambda seed, **size: composed.append(seed) or compose_scene(seed, **size))
    write_corpus(tmp_path, num_images=6, **SMALL)
    assert len(composed) == 4
    assert shards[0].stat().st_mtime_ns == kept_at
    assert [path.read_bytes() for path in shards] == before

    write_corpus(tmp_path, num_images=8, **SMALL)  # more images: one shard more
    assert len(composed) == 6
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.tar"))[:3]] == before


@pytest.mark.parametrize("other", [{"height": 160}, {"images_per_shard": 1}, {"num_images": 1}])
def test_a_folder_of_another_corpus_is_refused(tmp_path, other):
    write_corpus(tmp_path, num_images=2, **SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"syn_3_000000.tar holds 2 images"):
        write_corpus(tmp_path, **{"num_images": 2, **SMALL, **other})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"images_per_shard": 0}, {"seed": -1}, {"height": 40}, {"width": 300}])
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(ConfigError, match=str(next(iter(bad.values())))):
        write_corpus(tmp_path / "out", **{"num_images": 2, **SMALL, **bad})
    assert not (tmp_path / "out").exists()


def run_command(*arguments):
    command = [sys.executable, "-W", "error", "-m", "sam_train.data.synthetic", *arguments]
    root = Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_a_corpus(tmp_path):
    done = run_command("--out", str(tmp_path / "corpus"), "--num-images", "2", "--longest-side", "96", "--images-per-shard", "1")
    assert done.returncode == 0, done.stderr
    shards = sorted((tmp_path / "corpus").glob("*.tar"))
    names = [f"syn_0_{index:06d}.{kind}" for index in (0, 1) for kind in ("jpg", "json")]
    assert [name for path in shards for name in read_tar(path)] == names


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    done = run_command("--out", str(tmp_path), "--seed", "-1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: seed -1")
    assert done.stderr.count("\n") == 1
