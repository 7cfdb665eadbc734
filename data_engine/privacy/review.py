"""out/privacy/review.html: what was covered, as it is stored, and pictures in which nothing was found. For people's eyes.

Everything shown comes out of the finished shards, so the page shows nobody whom these do not show. Its cost is bounded, however
many pictures and boxes there are.
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

NUM_COVERED, NUM_CLEAR = 96, 48
CONTEXT = 3.0
"""Sides of the window that is shown, in sides of the box."""
TILE_PX = 220


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A picture on the page."""

    src: str
    key: str
    text: str


def write_privacy_review(folder: Path) -> Path:
    """Write the page of the done shards in a folder. Raises ShardError for shards or audits that do not read."""
    shards = done_shards(folder)
    boxes: Counter[str] = Counter()
    # The least sure ones: what is no face at all is among them.
    shown = heapq.nsmallest(NUM_COVERED, _least_sure(shards, boxes), key=lambda item: (item[2].score, item[1]))
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("review.html.j2").render(
        name=folder.resolve().name,
        num_images=sum(len(load_manifest(shard).keys) for shard in shards),
        num_covered=boxes.pop(_IMAGES, 0),
        boxes=sorted(boxes.items()),
        covered=_covered(shown),
        clear=_clear(shards),
    )
    path = folder / "privacy" / "review.html"
    atomic_write_bytes(path, page.encode())
    return path


_IMAGES = "images with something covered"


def _least_sure(shards: Sequence[Path], boxes: Counter[str]) -> Iterator[tuple[Path, str, RedactedBox]]:
    """Of each picture the box with the lowest score; counts boxes by kind and pictures on the way."""
    for shard in shards:
        for key, group in groupby(read_audit(shard), key=itemgetter(0)):
            places = [place for _, place in group]
            boxes.update([_IMAGES, *(place.kind for place in places)])
            yield shard, key, min(places, key=attrgetter("score"))


def _covered(shown: Sequence[tuple[Path, str, RedactedBox]]) -> list[Tile]:
    wanted: dict[Path, list[str]] = defaultdict(list)
    for shard, key, _ in shown:
        wanted[shard].append(key)
    pictures = {(shard, key): jpeg for shard, keys in wanted.items() for key, jpeg in _jpegs(shard, keys)}
    for shard, key, _ in shown:
        if (shard, key) not in pictures:
            raise ShardError(f"{audit_path(shard)} tells of a picture that the shard does not have", shard=str(shard), key=key)
    return [
        Tile(src=_shown(_around(_decoded(pictures[shard, key], key), place)), key=key, text=f"{place.kind} {place.score:.2f}")
        for shard, key, place in shown
    ]


def _clear(shards: Sequence[Path]) -> list[Tile]:
    """Pictures of shards spread over the run."""
    tiles: list[Tile] = []
    looked_at = [shards[i] for i in evenly_spaced_indices(len(shards), NUM_CLEAR)]
    for shard in looked_at:
        covered = {key for key, _ in read_audit(shard)}
        keys = [key for key in load_manifest(shard).keys if key not in covered]
        shown = evenly_spaced_indices(len(keys), -(-NUM_CLEAR // len(looked_at)))
        for key, jpeg in _jpegs(shard, [keys[i] for i in shown]):
            tiles.append(Tile(src=_shown(_decoded(jpeg, key)), key=key, text=""))
    return tiles[:NUM_CLEAR]


def _jpegs(shard: Path, keys: Iterable[str]) -> list[tuple[str, bytes]]:
    wanted = set(keys)
    return [(sample.key, read_sample_bytes(sample)[0]) for sample in index_shard(shard) if sample.key in wanted] if wanted else []


def _decoded(jpeg: bytes, key: str) -> np.ndarray:
    return decode_jpeg(jpeg, key=key)


def _around(image: np.ndarray, place: RedactedBox) -> np.ndarray:
    """The box framed, in its surroundings."""
    left, top, right, bottom = place.covered_xyxy
    half = max(right - left, bottom - top, 24) * CONTEXT / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    x0, y0 = max(0, int(x - half)), max(0, int(y - half))
    window = image[y0 : int(y + half) + 1, x0 : int(x + half) + 1]
    scale = TILE_PX / max(window.shape[:2])
    drawn = _resized(window, scale)
    corners = [(round((a - x0) * scale), round((b - y0) * scale)) for a, b in ((left, top), (right, bottom))]
    return cv2.rectangle(drawn, corners[0], corners[1], (255, 196, 0), 1)


def _shown(image: np.ndarray) -> str:
    small = _resized(image, min(1.0, TILE_PX / max(image.shape[:2])))
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(small, 85)).decode("ascii")


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
