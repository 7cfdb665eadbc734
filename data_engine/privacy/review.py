"""The privacy review page, out/privacy/review.html: redacted boxes as stored, and images in which nothing was detected.

All shown pixels come from the complete shards, so the page shows no person whom the shards do not show. Its cost is bounded,
whatever the number of images and boxes.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_engine.privacy.audit import audit_path, read_audit
from data_engine.structures import RedactedBox
from sam_train.errors import ShardError
from sam_train.files import atomic_write_bytes
from sam_train.shards import decode_jpeg, done_shards, encode_jpeg, load_manifest
from sam_train.shards.index import index_shard, read_sample_bytes
from sam_train.subsets import evenly_spaced_indices

MAX_REDACTED, MAX_CLEAR = 96, 48
CONTEXT_FACTOR = 3.0
"""Side of the shown window, relative to the longer side of the box."""
TILE_PX = 220


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewTile:
    """An image on the page."""

    src: str
    """Data URL of the JPEG."""
    key: str
    text: str


def write_privacy_review(folder: Path) -> Path:
    """Write the page for the complete shards in a folder and return its path. Raises ShardError for a corrupt shard or audit."""
    shards = done_shards(folder)
    boxes: Counter[str] = Counter()
    # The lowest scores: the false detections are among them.
    shown = heapq.nsmallest(MAX_REDACTED, _lowest_scored(shards, boxes), key=lambda item: (item[2].score, item[1]))
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("review.html.j2").render(
        name=folder.resolve().name,
        num_images=sum(len(load_manifest(shard).keys) for shard in shards),
        num_redacted=boxes.pop(_IMAGES, 0),
        boxes=sorted(boxes.items()),
        redacted=_redacted_tiles(shown),
        clear=_clear_tiles(shards),
    )
    path = folder / "privacy" / "review.html"
    atomic_write_bytes(path, page.encode())
    return path


_IMAGES = "images with a redaction"


def _lowest_scored(shards: Sequence[Path], boxes: Counter[str]) -> Iterator[tuple[Path, str, RedactedBox]]:
    """Yield the lowest-scored box of each image, and count boxes by kind and images in `boxes`."""
    for shard in shards:
        for key, group in groupby(read_audit(shard), key=itemgetter(0)):
            image_boxes = [box for _, box in group]
            boxes.update([_IMAGES, *(box.kind for box in image_boxes)])
            yield shard, key, min(image_boxes, key=attrgetter("score"))


def _redacted_tiles(shown: Sequence[tuple[Path, str, RedactedBox]]) -> list[ReviewTile]:
    keys_by_shard: dict[Path, list[str]] = defaultdict(list)
    for shard, key, _ in shown:
        keys_by_shard[shard].append(key)
    jpegs = {(shard, key): jpeg for shard, keys in keys_by_shard.items() for key, jpeg in _read_jpegs(shard, keys)}
    for shard, key, _ in shown:
        if (shard, key) not in jpegs:
            raise ShardError(f"{audit_path(shard)} names an image that the shard does not contain", shard=str(shard), key=key)
    return [
        ReviewTile(
            src=_data_url(_crop_around(decode_jpeg(jpegs[shard, key], key=key), box)), key=key, text=f"{box.kind} {box.score:.2f}"
        )
        for shard, key, box in shown
    ]


def _clear_tiles(shards: Sequence[Path]) -> list[ReviewTile]:
    """Return images without a redaction, from shards that are evenly spaced over the run."""
    tiles: list[ReviewTile] = []
    selected = [shards[i] for i in evenly_spaced_indices(len(shards), MAX_CLEAR)]
    for shard in selected:
        redacted = {key for key, _ in read_audit(shard)}
        keys = [key for key in load_manifest(shard).keys if key not in redacted]
        shown = evenly_spaced_indices(len(keys), -(-MAX_CLEAR // len(selected)))
        for key, jpeg in _read_jpegs(shard, [keys[i] for i in shown]):
            tiles.append(ReviewTile(src=_data_url(decode_jpeg(jpeg, key=key)), key=key, text=""))
    return tiles[:MAX_CLEAR]


def _read_jpegs(shard: Path, keys: Iterable[str]) -> list[tuple[str, bytes]]:
    key_set = set(keys)
    return (
        [(sample.key, read_sample_bytes(sample)[0]) for sample in index_shard(shard) if sample.key in key_set] if key_set else []
    )


def _crop_around(image: np.ndarray, box: RedactedBox) -> np.ndarray:
    """Return the box with its surroundings, marked by a frame."""
    left, top, right, bottom = box.covered_xyxy
    half = max(right - left, bottom - top, 24) * CONTEXT_FACTOR / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    x0, y0 = max(0, int(x - half)), max(0, int(y - half))
    window = image[y0 : int(y + half) + 1, x0 : int(x + half) + 1]
    scale = TILE_PX / max(window.shape[:2])
    drawn = _resize(window, scale)
    corners = [(round((a - x0) * scale), round((b - y0) * scale)) for a, b in ((left, top), (right, bottom))]
    return cv2.rectangle(drawn, corners[0], corners[1], (255, 196, 0), 1)


def _data_url(image: np.ndarray) -> str:
    small = _resize(image, min(1.0, TILE_PX / max(image.shape[:2])))
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(small, 85)).decode("ascii")


def _resize(image: np.ndarray, scale: float) -> np.ndarray:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
