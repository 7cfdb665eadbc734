"""Tests that synthetic scenes are deterministic with exact, nested masks, and that the corpus is plain SA-1B and resumable."""

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

from sam_train.data.synthetic import compose_scene, corpus, more_shapes, photographs, shapes, write_corpus
from sam_train.data.synthetic.training_scenes import compose_training_scenes
from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards import load_manifest, manifest_path

SEEDS = range(40)
SIZE = {"height": 160, "width": 200}
SMALL = {"seed": 3, "height": 128, "width": 128, "images_per_shard": 2}


# pycocotools does not support NumPy 2's __array__(copy=...) yet.
decodes_rle = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


def read_members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def read_records(path):
    members = read_members(path)
    return [
        ImageRecord.from_json(data, key=name.removesuffix(".json")) for name, data in members.items() if name.endswith(".json")
    ]


@pytest.fixture(scope="module")
def scenes():
    return [compose_scene(seed, **SIZE) for seed in SEEDS]


def test_equal_seeds_give_equal_scenes_in_any_global_state(scenes):
    np.random.seed(1)
    again = compose_scene(SEEDS[5], **SIZE)
    np.testing.assert_array_equal(again.image, scenes[5].image)
    np.testing.assert_array_equal(again.masks, scenes[5].masks)
    assert again.levels == scenes[5].levels


def test_different_seeds_give_different_scenes(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.masks.tobytes() for scene in scenes}) == len(scenes)


def test_scenes_have_masks_of_every_level(scenes):
    for scene in scenes:
        assert scene.image.shape == (160, 200, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.levels), 160, 200)
        assert scene.masks.dtype == bool
    levels = np.concatenate([scene.levels for scene in scenes])
    assert set(levels) == {0, 1, 2}
    assert np.mean([len(scene.levels) for scene in scenes]) > 5
    assert np.mean(levels > 0) > 0.3  # otherwise one click would not be ambiguous


def test_masks_have_the_minimum_area(scenes):
    assert min(mask.sum() for scene in scenes for mask in scene.masks) >= 0.0015 * 160 * 200


def test_parts_lie_inside_their_parents_and_wholes_do_not_overlap(scenes):
    for scene in scenes:
        levels = np.array(scene.levels)
        assert scene.masks[levels == 0].sum(0).max() == 1
        for mask, level in zip(scene.masks, levels, strict=True):
            if level:
                shared = [(other & mask).sum() for other in scene.masks[levels == level - 1]]
                parent = scene.masks[levels == level - 1][int(np.argmax(shared))]
                assert max(shared) == mask.sum()
                assert mask.sum() <= 0.85 * parent.sum()


def test_mask_boundaries_are_visible_in_the_image(scenes):
    """The image gradient is larger on a mask's boundary than inside it; otherwise masks and image would not be aligned."""
    on_boundary, inside = [], []
    for scene in scenes:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        for mask in scene.masks:
            depth = cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            on_boundary.append(gradient[(depth > 0) & (depth < 1.2)])
            inside.append(gradient[(depth > 3) & (depth < 6)])
    assert np.concatenate(on_boundary).mean() > 1.5 * np.concatenate(inside).mean()


def test_polygon_coverage_is_exact_to_a_quarter_of_a_pixel():
    square = np.array([[10.0, 20.0], [30.5, 20.0], [30.5, 40.25], [10.0, 40.25]])
    coverage = shapes.rasterize([square], height=64, width=64)
    assert 20.5 * 20.25 - 1 <= coverage.sum() <= 20.75 * 20.5 + 1
    assert (coverage[20:40, 10:30] == 1).all()
    assert coverage[:20].max() <= 0.26
    assert coverage[:, :10].max() <= 0.26
    assert coverage[30, 30] == pytest.approx(0.5, abs=0.26)
    assert not coverage[:, 31:].any()


@pytest.mark.parametrize("seed", range(20))
def test_polygon_reaches_the_unit_circle(seed):
    polygon, shape = shapes.random_polygon(np.random.default_rng(seed))
    assert shape in shapes.SHAPES
    distances = np.linalg.norm(polygon, axis=1)
    assert distances.max() == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(32, 320), (320, 40), (100, 500)])
def test_rejects_sizes_without_room_for_objects(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        compose_scene(0, height=height, width=width)


def test_true_colours_keep_the_colours_of_the_photograph(scenes):
    """A grey photograph stays grey, while it is recoloured without `true_colours`."""
    named = zip(photographs.PHOTOGRAPH_NAMES, photographs.load_photographs(), strict=True)
    grey = {name for name, pixels in named if (pixels[..., 0] == pixels[..., 2]).all()}
    assert {"brick", "gravel", "moon"} <= grey

    def red_blue_differences(scenes_):
        """Yield the median red-blue difference of each grey object: its small parts without a mask are painted too."""
        for scene in scenes_:
            for number, (mask, name) in enumerate(zip(scene.masks, scene.names, strict=True)):
                uncovered = mask & ~np.any(scene.masks[number + 1 :], 0) if number + 1 < len(scene.masks) else mask
                if name.split()[1] in grey and uncovered.sum() > 300:
                    yield abs(np.median(scene.image[uncovered, 0].astype(int) - scene.image[uncovered, 2]))

    true_colours = [compose_scene(seed, **SIZE, true_colours=True) for seed in SEEDS]
    assert len(list(red_blue_differences(true_colours))) > 20
    assert max(red_blue_differences(true_colours)) <= 4
    assert max(red_blue_differences(scenes)) > 20


def test_missing_package_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"skimage.*pip install '\.\[quickstart\]'"):
        photographs.load_photographs.__wrapped__()


def test_missing_photograph_error_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(photographs, "_package_folder", lambda package: tmp_path)
    with pytest.raises(ConfigError, match=r"astronaut.png.*pip install"):
        photographs.load_photographs.__wrapped__()


def test_photographs_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        photographs.load_photographs()[0][0, 0] = 0


@decodes_rle
def test_shards_open_with_plain_tarfile_json_and_pycocotools(tmp_path):
    write_corpus(tmp_path, num_images=3, **SMALL)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["syn_3_000000.tar", "syn_3_000001.tar"]
    keys, sizes = [], set()
    for path in sorted(tmp_path.glob("*.tar")):
        members = read_members(path)
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
def test_shard_contains_the_scene(tmp_path, monkeypatch):
    scenes = []

    def compose_and_record(*args, **kwargs):
        scenes.append(compose_scene(*args, **kwargs))
        return scenes[-1]

    monkeypatch.setattr(corpus, "compose_scene", compose_and_record)
    write_corpus(tmp_path, num_images=2, **SMALL)
    shard = tmp_path / "syn_3_000000.tar"
    for scene, record in zip(scenes, read_records(shard), strict=True):
        decoded = [coco_mask.decode(mask.segmentation).astype(bool) for mask in record.masks]
        np.testing.assert_array_equal(np.stack(decoded), scene.masks)
        pixels = cv2.cvtColor(
            cv2.imdecode(np.frombuffer(read_members(shard)[f"{record.key}.jpg"], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        assert np.abs(pixels.astype(int) - scene.image).mean() < 4
    counts = load_manifest(shard).counts
    assert counts["wholes"] == sum(scene.levels.count(0) for scene in scenes)
    assert sum(counts.values()) == sum(len(scene.levels) for scene in scenes)


def test_corpora_of_different_seeds_have_disjoint_keys_and_ids(tmp_path):
    write_corpus(tmp_path, num_images=2, **SMALL)
    write_corpus(tmp_path, num_images=2, **{**SMALL, "seed": 4})
    records = [record for path in sorted(tmp_path.glob("*.tar")) for record in read_records(path)]
    mask_ids = [mask.id for record in records for mask in record.masks]
    assert len({record.key for record in records}) == len({record.image_id for record in records}) == 4
    assert len(set(mask_ids)) == len(mask_ids)


def test_restart_keeps_finished_shards_and_writes_missing_ones(tmp_path, monkeypatch):
    write_corpus(tmp_path, num_images=6, **SMALL)
    shards = sorted(tmp_path.glob("*.tar"))
    before = [path.read_bytes() for path in shards]
    manifest_path(shards[1]).unlink()  # killed between the tar and its manifest
    shards[1].write_bytes(b"corrupt")
    shards[2].unlink()  # a tar that was deleted
    kept_at = shards[0].stat().st_mtime_ns

    composed = []
    monkeypatch.setattr(corpus, "compose_scene", lambda seed, **size: composed.append(seed) or compose_scene(seed, **size))
    write_corpus(tmp_path, num_images=6, **SMALL)
    assert len(composed) == 4
    assert shards[0].stat().st_mtime_ns == kept_at
    assert [path.read_bytes() for path in shards] == before

    write_corpus(tmp_path, num_images=8, **SMALL)  # more images: one more shard
    assert len(composed) == 6
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.tar"))[:3]] == before


@pytest.mark.parametrize("other", [{"height": 160}, {"images_per_shard": 1}, {"num_images": 1}])
def test_rejects_a_folder_of_another_corpus(tmp_path, other):
    write_corpus(tmp_path, num_images=2, **SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"syn_3_000000.tar contains 2 images"):
        write_corpus(tmp_path, **{"num_images": 2, **SMALL, **other})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"images_per_shard": 0}, {"seed": -1}, {"height": 40}, {"width": 300}])
def test_rejects_numbers_out_of_range_before_writing(tmp_path, bad):
    with pytest.raises(ConfigError, match=str(next(iter(bad.values())))):
        write_corpus(tmp_path / "out", **{"num_images": 2, **SMALL, **bad})
    assert not (tmp_path / "out").exists()


def run_command(*arguments):
    command = [sys.executable, "-W", "error", "-m", "sam_train.data.synthetic", *arguments]
    root = Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_command_writes_a_corpus(tmp_path):
    process = run_command(
        "--out", str(tmp_path / "corpus"), "--num-images", "2", "--longest-side", "96", "--images-per-shard", "1"
    )
    assert process.returncode == 0, process.stderr
    shards = sorted((tmp_path / "corpus").glob("*.tar"))
    names = [f"syn_0_{index:06d}.{kind}" for index in (0, 1) for kind in ("jpg", "json")]
    assert [name for path in shards for name in read_members(path)] == names


def test_command_error_is_one_line(tmp_path):
    process = run_command("--out", str(tmp_path), "--seed", "-1")
    assert process.returncode == 1
    assert process.stderr.startswith("error: seed -1")
    assert process.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def pattern_scenes():
    return [compose_scene(seed, material="patterns", **SIZE) for seed in SEEDS]


def test_scenes_of_patterns_have_masks_of_every_level(pattern_scenes):
    for scene in pattern_scenes:
        assert scene.image.shape == (160, 200, 3)
        assert scene.masks.shape == (len(scene.levels), 160, 200)
        levels = np.array(scene.levels)
        assert scene.masks[levels == 0].sum(0).max(initial=0) <= 1
    assert set(np.concatenate([scene.levels for scene in pattern_scenes])) == {0, 1, 2}
    assert np.mean([len(scene.levels) for scene in pattern_scenes]) > 5
    np.testing.assert_array_equal(compose_scene(SEEDS[3], material="patterns", **SIZE).image, pattern_scenes[3].image)


def test_patterns_share_neither_photographs_nor_shapes_with_the_other_corpus(pattern_scenes, monkeypatch):
    """The starter model is trained on patterns, so the corpus of photographs must be new to it."""
    monkeypatch.setattr(photographs, "_read", lambda path: pytest.fail(f"{path} was read"))
    photographs.load_photographs.cache_clear()
    compose_scene(0, material="patterns", **SIZE)
    names = {name for scene in pattern_scenes for name in scene.names}
    assert {name.split()[0] for name in names} == set(more_shapes.MORE_SHAPES)
    assert not set(more_shapes.MORE_SHAPES) & set(shapes.SHAPES)
    assert {name.split()[1] for name in names} == {"pattern"}


def test_some_objects_have_holes_and_some_are_thin(pattern_scenes):
    holes, thickest = 0, []
    for scene in pattern_scenes:
        for mask in scene.masks:
            contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            holes += any(parent >= 0 and len(contour) > 12 for contour, (*_, parent) in zip(contours, hierarchy[0], strict=True))
            radius = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).max()
            thickest.append(2 * radius / np.sqrt(mask.sum()))
    assert holes > 5
    assert np.quantile(thickest, 0.1) < 0.6  # a disc has 1.13


def test_unknown_material_is_named(tmp_path):
    with pytest.raises(ValueError, match="material is 'wood': expected one of photographs, patterns"):
        compose_scene(0, material="wood", **SIZE)
    with pytest.raises(ConfigError, match="material is 'wood'"):
        write_corpus(tmp_path, num_images=2, material="wood", **SMALL)
    with pytest.raises(ConfigError, match="true colours are those of photographs"):
        write_corpus(tmp_path, num_images=2, material="patterns", true_colours=True, **SMALL)


def test_several_processes_write_the_same_shards(tmp_path):
    write_corpus(tmp_path / "one", num_images=4, material="patterns", **SMALL)
    compose_training_scenes(
        {"folder": str(tmp_path / "two"), "num_images": 4, "seed": 3, "longest_side": 128, "images_per_shard": 2, "workers": 2}
    )
    for path in sorted((tmp_path / "one").glob("*.tar")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        ({"num_images": 4}, "synthetic lacks folder: expected folder, num_images and"),
        ({"folder": "x", "num_images": 4, "sides": 3}, "synthetic has the unknown keys sides"),
    ],
)
def test_invalid_training_scenes_are_named(synthetic, message):
    with pytest.raises(ConfigError, match=message):
        compose_training_scenes(synthetic)
