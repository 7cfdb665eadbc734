"""Benchmark of the data loader: images per second and core, from a shard to a training batch at 1024 pixels.

    OMP_NUM_THREADS=1 python tests/benchmarks/loader.py [--images 8] [--rounds 5] [--flat]

The shards are written first: 1500 x 2250 JPEGs, tiled from the photographs in scikit-image's and scikit-learn's wheels, with
100 masks each. The baseline is the usual loader: it opens images with PIL, decodes all masks with pycocotools, resizes image
and masks, then draws 64 of them. Our loader is ShardDataModule's training loader, with one image a step and 64 masks, up to
the packed batch that is sent to the device. The two alternate in one process.

Prints one line of JSON:
    speed_ratio         median CPU seconds of the baseline / of our loader
    limit_share         CPU seconds of JPEG decoding alone, at the same scale / of our loader
    unpacked_speed_ratio, unpacked_limit_share   the same with the batch unpacked to 1024 x 1024 masks on the CPU
    mean_mask_iou, min_mask_iou   IoU of our masks with `geometry.resize_masks`, over masks of at least 16 pixels
    open_1000_shards_s  seconds to index 1,000 shards of 1,000 samples by their manifests
with --flat (two minutes more):
    ms_per_small_image  CPU time per image in sets of 1,000, 10,000 and 100,000 small images; flat_ratio: largest set / smallest
    grown_mb            growth of the resident memory between the second and the tenth epoch
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil
import simplejpeg
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from sam_train.data.datamodule import ShardDataModule
from sam_train.data.mask_targets import resize_rles
from sam_train.data.synthetic.photographs import load_photographs
from sam_train.geometry import resize_masks
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import decode_rle, encode_rle, mask_to_box_xywh
from sam_train.shards import write_shard
from sam_train.shards.index import index_shard, read_sample
from sam_train.shards.manifest import PLACES_COLUMNS, Manifest, manifest_path

HEIGHT, WIDTH, SIZE, MASKS, DRAWN, TILE = 1500, 2250, 1024, 100, 64, 750


def main() -> None:
    """Write the shards, run the measurements and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="number of repetitions; medians are reported")
    parser.add_argument("--flat", action="store_true", help="also measure sets of many small images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "large" / "sa_000000.tar"
        write_shard(shard, (large_sample(seed) for seed in range(arguments.images)))
        figures = measure_speed(shard, arguments.images, arguments.rounds) | measure_masks(shard)
        figures |= measure_opening(Path(folder) / "many")
        if arguments.flat:
            figures |= measure_flat(Path(folder))
    print(json.dumps({name: rounded(value) for name, value in figures.items()}))


def large_sample(seed: int) -> tuple[ImageRecord, bytes]:
    """Return an image of tiled photographs, with masks of polygons of all sizes."""
    rng = np.random.default_rng(seed)
    photographs, image = load_photographs(), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for top in range(0, HEIGHT, TILE):
        for left in range(0, WIDTH, TILE):
            photograph = photographs[rng.integers(len(photographs))]
            scale = max(1.0, TILE / min(photograph.shape[:2]))
            tile = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            image[top : top + TILE, left : left + TILE] = tile[:TILE, :TILE]
    masks = [mask_record(index, random_polygon_mask(rng, HEIGHT, WIDTH)) for index in range(MASKS)]
    record = ImageRecord(key=f"sa_{seed:06d}", image_id=seed, width=WIDTH, height=HEIGHT, masks=masks)
    return record, simplejpeg.encode_jpeg(image, quality=90, colorspace="RGB", colorsubsampling="420")


def random_polygon_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the mask of a star-shaped polygon: radius log-uniform in 0.01 to 0.33 of the height, centre anywhere."""
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    waves = sum(rng.normal() / k**1.3 * 0.35 * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 12))
    radius = np.clip(1 + waves, 0.2, 2) * height * np.exp(rng.uniform(np.log(0.01), np.log(0.33)))
    centre = rng.uniform(0.05, 0.95, 2) * (width, height)
    points = centre + np.stack([radius * np.cos(angles), radius * rng.uniform(0.5, 1) * np.sin(angles)], 1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask.astype(bool)


def mask_record(index: int, mask: np.ndarray) -> MaskRecord:
    """Return a mask record with provenance, as the data engine writes it."""
    source = Provenance(stage="fully_automatic", checkpoint="0" * 64, annotator="automatic", config="0" * 64)
    return MaskRecord(
        id=index,
        segmentation=encode_rle(mask),
        bbox=mask_to_box_xywh(mask),
        area=int(mask.sum()),
        predicted_iou=0.9,
        stability_score=0.95,
        crop_box=[0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])],
        point_coords=[[1.0, 1.0]],
        provenance=source,
    )


def measure_speed(shard: Path, num_images: int, rounds: int) -> dict[str, Any]:
    """Measure the CPU seconds per image of our loader, packed and unpacked, of the baseline and of JPEG decoding alone."""
    ours = iter(ShardDataModule(shards=str(shard), image_size=SIZE, max_masks=DRAWN).train_dataloader())
    samples = [read_sample(entry) for entry in index_shard(shard)]
    baseline_samples = [(sample.jpeg, sample.record.to_json()) for sample in samples[:2]]
    seconds: dict[str, list[float]] = {"ours": [], "unpacked": [], "baseline": [], "limit": []}
    for repetition in range(rounds + 1):  # the first one is a warm-up
        calls: dict[str, Callable[[], int]] = {
            "ours": lambda: sum(len(next(ours).keys) for _ in range(num_images)),
            "unpacked": lambda: sum(len(next(ours).unpack().keys) for _ in range(num_images)),
            "limit": lambda: sum(decode_half(sample.jpeg) is not None for sample in samples),
            "baseline": lambda: sum(len(baseline_loader(*pair, seed=repetition)[0]) for pair in baseline_samples),  # noqa: B023
        }
        for name, call in calls.items():
            start = time.process_time()
            num_loaded = call()
            seconds[name].append((time.process_time() - start) / num_loaded)
    m = {name: median(values[1:]) for name, values in seconds.items()}
    return {
        "speed_ratio": m["baseline"] / m["ours"],
        "limit_share": m["limit"] / m["ours"],
        "unpacked_speed_ratio": m["baseline"] / m["unpacked"],
        "unpacked_limit_share": m["limit"] / m["unpacked"],
        "images_per_second": 1 / m["ours"],
        "ms_per_image": {name: value * 1e3 for name, value in m.items()},
        "jpeg_kb": sum(len(sample.jpeg) for sample in samples) / len(samples) / 1e3,
    }


def decode_half(jpeg: bytes) -> np.ndarray:
    """Decode a JPEG at the smallest scale of the decoder that is at least the model's."""
    return simplejpeg.decode_jpeg(jpeg, min_height=HEIGHT // 2, min_width=WIDTH // 2, min_factor=2)


def baseline_loader(jpeg: bytes, document: bytes, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode and resize the image and all masks, then draw masks."""
    opened, annotations = Image.open(io.BytesIO(jpeg)).convert("RGB"), json.loads(document)["annotations"]
    height, width = round(HEIGHT * SIZE / WIDTH), SIZE
    masks = [coco_mask.decode(annotation["segmentation"]) for annotation in annotations]
    resized = [np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)) for mask in masks]
    pixels = np.asarray(opened.resize((width, height), Image.Resampling.BILINEAR))
    drawn = np.random.default_rng(seed).permutation(len(masks))[:DRAWN]
    targets = torch.zeros(len(drawn), SIZE, SIZE, dtype=torch.bool)
    targets[:, :height] = torch.from_numpy(np.stack([resized[i] for i in drawn])).bool()
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    image[:, :height] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return image[None], targets


def measure_masks(shard: Path) -> dict[str, float]:
    """Compare our resized masks with `geometry.resize_masks`, for two images."""
    to_hw, ious = (round(HEIGHT * SIZE / WIDTH), SIZE), []
    for entry in islice(index_shard(shard), 2):
        rles = [mask.segmentation for mask in read_sample(entry).record.masks]
        for rle, crop in zip(rles, resize_rles(rles, (HEIGHT, WIDTH), to_hw), strict=True):
            resized = np.zeros(to_hw, bool)
            crop.paste_into(resized)
            expected = resize_masks(decode_rle(rle, height=HEIGHT, width=WIDTH)[None], *to_hw)[0]
            if expected.sum() >= 16:
                ious.append((resized & expected).sum() / (resized | expected).sum())
    return {"mean_mask_iou": float(np.mean(ious)), "min_mask_iou": float(np.min(ious))}


def measure_opening(folder: Path, num_shards: int = 1000, num_samples: int = 1000) -> dict[str, float]:
    """Measure the indexing of manifests of full size, beside sparse tars that contain only their last header."""
    import tarfile

    folder.mkdir()
    header = tarfile.TarInfo(f"sa_{num_samples - 1:08d}.json")
    header.size = 100
    spans = {"jpeg_offset": 512, "jpeg_bytes": 400_000, "json_offset": 401_024, "json_bytes": 100}
    for number in range(num_shards):
        shard = folder / f"sa_{number:06d}.tar"
        places = {name: [spans.get(name, 1) for _ in range(num_samples)] for name in PLACES_COLUMNS}
        for name in ("jpeg_offset", "json_offset"):
            places[name] = [spans[name] + 401_664 * place for place in range(num_samples)]
        end = places["json_offset"][-1]
        with shard.open("wb") as stream:
            stream.seek(end - 512)
            stream.write(header.tobuf())
            stream.truncate(end + 1024)
        keys = [f"sa_{place:08d}" for place in range(num_samples)]
        manifest = Manifest(shard=shard.name, sha256="", bytes=end + 1024, keys=keys, num_masks=1, places=places)
        manifest_path(shard).write_bytes(manifest.to_json())
    start = time.perf_counter()
    module = ShardDataModule(shards=str(folder), image_size=SIZE)
    seconds = time.perf_counter() - start
    assert module.train_set.shards.num_images == num_shards * num_samples
    return {"open_1000_shards_s": seconds}


def measure_flat(folder: Path) -> dict[str, Any]:
    """Measure CPU seconds per image and resident memory, in sets of hard links to one shard of 1,000 small images."""
    source = folder / "small.tar"
    write_shard(source, small_samples(1000))
    per_image = {}
    for num_shards in (1, 10, 100):
        many = folder / f"linked_{num_shards}"
        many.mkdir()
        for number in range(num_shards):
            for path in (source, manifest_path(source)):
                os.link(path, many / f"sa_{number:06d}{path.name.removeprefix('small')}")
        loader = iter(ShardDataModule(shards=str(many), image_size=64).train_dataloader())
        drain(loader, 200)
        start = time.process_time()
        drain(loader, 3000)
        per_image[num_shards * 1000] = (time.process_time() - start) / 3000
    loader, resident = iter(ShardDataModule(shards=str(source), image_size=64).train_dataloader()), []
    for _ in range(10):
        drain(loader, 1000)
        resident.append(psutil.Process().memory_info().rss / 1e6)
    return {
        "flat_ratio": per_image[100_000] / per_image[1000],
        "ms_per_small_image": [value * 1e3 for value in per_image.values()],
        "grown_mb": resident[-1] - resident[1],
    }


def small_samples(number: int) -> Iterator[tuple[ImageRecord, bytes]]:
    """Yield images of 96 x 64 pixels with three masks."""
    rng = np.random.default_rng(0)
    jpeg = simplejpeg.encode_jpeg(rng.integers(0, 256, (64, 96, 3)).astype(np.uint8))
    masks = [mask_record(index, random_polygon_mask(np.random.default_rng(4 + index), 64, 96)) for index in range(2)]
    whole = np.zeros((64, 96), bool)
    whole[8:40, 8:60] = True
    masks.append(mask_record(2, whole))
    for index in range(number):
        yield ImageRecord(key=f"sa_{index:06d}", image_id=index, width=96, height=64, masks=masks), jpeg


def drain(loader: Iterator[Any], number: int) -> None:
    """Take `number` batches from the loader."""
    for _ in range(number):
        next(loader)


def rounded(value: Any) -> Any:
    """Round all numbers to three significant digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
