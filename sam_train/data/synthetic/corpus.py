"""Writes synthetic scenes as SA-1B shards. A killed run resumes at its first missing shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from sam_train.data.synthetic.materials import MATERIALS
from sam_train.data.synthetic.scene import MIN_SIDE_PX, SyntheticScene, compose_scene
from sam_train.errors import ConfigError
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import encode_rle, mask_to_box_xywh
from sam_train.shards import done_shards, encode_jpeg, load_manifest, manifest_path, write_shard

_MAX_IMAGES = 1_000_000  # images of a seed, so that the ids of different seeds are disjoint
_MAX_MASKS = 100  # masks of an image, likewise; a scene has at most 7 wholes of 2 parts of 1 sub-part, which is 35
_LEVEL_NAMES = ("wholes", "parts", "sub_parts")
_MAX_SHORTENING = 0.25  # largest share by which one side is shorter than the other
_COMPOSER = "2"
"""Version of the composer (2: masks have names). Raise it when equal seeds give other scenes or records, so that a folder
begun by an earlier version is rejected."""


def write_corpus(
    folder: Path,
    *,
    num_images: int,
    seed: int,
    height: int,
    width: int,
    images_per_shard: int,
    true_colours: bool = False,
    material: str = "photographs",
    workers: int = 1,
    progress: bool = False,
) -> None:
    """Write `num_images` scenes to `folder` as shards `syn_{seed}_000000.tar`, ...

    height, width: largest size of an image. One of its sides is shorter by up to a quarter, so that padding occurs.
    true_colours, material: as in `compose_scene`.
    workers: number of processes; the scenes do not depend on it.
    progress: show a progress bar on the terminal.

    Finished shards are kept; a call with more images adds the missing shards. Keys and ids of corpora of different seeds are
    disjoint, so their shards may share a folder.

    Raises ConfigError for numbers out of range or an unknown material, for a folder that contains other shards of this seed,
    and if the photographs are not installed.
    """
    _check_arguments(num_images=num_images, seed=seed, height=height, width=width, images_per_shard=images_per_shard)
    if material not in MATERIALS:
        raise ConfigError(f"material is {material!r}: expected one of {', '.join(MATERIALS)}")
    MATERIALS[material]()  # fails now if it is not installed, not after the first scenes
    settings: dict[str, Any] = {
        "stage": "import",
        "annotator": "synthetic",
        "composer": _COMPOSER,
        "seed": seed,
        "height": height,
        "width": width,
    }
    settings |= {"true_colours": True} if true_colours else {}
    settings |= {"material": material} if material != "photographs" else {}
    shards = {
        folder / f"syn_{seed}_{number:06d}.tar": range(start, min(start + images_per_shard, num_images))
        for number, start in enumerate(range(0, num_images, images_per_shard))
    }
    _check_finished_shards(folder, shards, seed=seed, settings=settings)
    missing = {path: indices for path, indices in shards.items() if not (path.is_file() and manifest_path(path).is_file())}
    scene_options = {"height": height, "width": width, "true_colours": true_colours, "material": material}
    write = partial(_write_scenes, seed=seed, scene_options=scene_options, provenance=settings)
    show = partial(track, description="composing scenes", total=len(missing), disable=not progress)
    if not missing:
        return
    if workers == 1 or len(missing) == 1:
        for _ in show(map(write, missing, missing.values())):
            pass
        return
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=get_context("spawn")) as pool:
        for _ in show(pool.map(write, missing, missing.values())):
            pass


def _write_scenes(path: Path, indices: range, *, seed: int, scene_options: dict[str, Any], provenance: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    write_shard(path, _samples(indices, seed=seed, counts=counts, **scene_options), counts=counts, provenance=provenance)


def _check_arguments(*, num_images: int, seed: int, height: int, width: int, images_per_shard: int) -> None:
    if not 1 <= num_images <= _MAX_IMAGES or images_per_shard < 1:
        raise ConfigError(
            f"num_images {num_images} and images_per_shard {images_per_shard}: expected 1 to {_MAX_IMAGES} and at least 1"
        )
    if not 0 <= seed < _MAX_IMAGES:
        raise ConfigError(f"seed {seed}: expected 0 to {_MAX_IMAGES - 1}, because image ids begin at seed x {_MAX_IMAGES}")
    # Half the largest ratio that a scene allows leaves room for the side that is shortened.
    min_side = int(np.ceil(MIN_SIDE_PX / (1 - _MAX_SHORTENING)))
    if min(height, width) < min_side or max(height, width) > 2 * min(height, width):
        raise ConfigError(
            f"images of {height} x {width}: expected sides of at least {min_side} px, neither more than twice the other"
        )


def _check_finished_shards(folder: Path, shards: dict[Path, range], *, seed: int, settings: dict[str, Any]) -> None:
    """Raise ConfigError unless every finished shard of this seed is one that this call would write."""
    for path in done_shards(folder):
        if not path.name.startswith(f"syn_{seed}_"):
            continue
        manifest = load_manifest(path)
        keys = [_key(seed, index) for index in shards.get(path, ())]
        if manifest.keys != keys or manifest.provenance != settings:
            raise ConfigError(
                f"{path} contains {len(manifest.keys)} images with the settings {manifest.provenance}, and this run would write "
                f"{len(keys)} with the settings {settings}: choose another folder or seed, or delete the old shards"
            )


def _samples(
    indices: range, *, seed: int, height: int, width: int, true_colours: bool, material: str, counts: Counter[str]
) -> Iterator[tuple[ImageRecord, bytes]]:
    for index in indices:
        rng = np.random.default_rng([seed, index])
        sides = [height, width]
        shorter = rng.integers(2)
        sides[shorter] -= int(sides[shorter] * rng.uniform(0, _MAX_SHORTENING))
        scene = compose_scene(
            int(rng.integers(2**63)), height=sides[0], width=sides[1], true_colours=true_colours, material=material
        )
        counts.update(_LEVEL_NAMES[level] for level in scene.levels)
        yield _record(scene, key=_key(seed, index), image_id=seed * _MAX_IMAGES + index), encode_jpeg(scene.image)


def _key(seed: int, index: int) -> str:
    return f"syn_{seed}_{index:06d}"


def _record(scene: SyntheticScene, *, key: str, image_id: int) -> ImageRecord:
    height, width = scene.image.shape[:2]
    masks = [
        MaskRecord(
            id=image_id * _MAX_MASKS + number,
            segmentation=encode_rle(mask),
            bbox=mask_to_box_xywh(mask),
            area=int(mask.sum()),
            predicted_iou=1.0,
            stability_score=1.0,
            crop_box=[0.0, 0.0, float(width), float(height)],
            point_coords=[],
            provenance=Provenance(stage="import", checkpoint="", annotator="synthetic", config="", name=name),
        )
        for number, (mask, name) in enumerate(zip(scene.masks, scene.names, strict=True))
    ]
    return ImageRecord(key=key, image_id=image_id, width=width, height=height, masks=masks)
