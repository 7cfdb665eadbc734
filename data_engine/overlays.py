"""A JPEG of each image of a run with its masks drawn over it."""

from __future__ import annotations

from pathlib import Path

from sam_train.files import atomic_write_bytes
from sam_train.shards import decode_jpeg, done_shards, encode_jpeg, iterate_samples
from sam_train.shards.drawing import draw_masks
from sam_train.shards.keys import keys_from_paths

QUALITY = 90


def write_overlays(shards: Path, folder: Path) -> int:
    """Write `folder`/KEY.jpg for each image in the finished shards of `shards`, at its own size; return how many are new.

    Files that exist are kept. Raises ShardError for a corrupt shard.
    """
    number = 0
    for sample in iterate_samples(done_shards(shards)):
        record = sample.record
        path = folder / f"{keys_from_paths([f'{record.key}.jpg'])[0]}.jpg"  # a key of foreign shards may contain slashes
        if path.exists():
            continue
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=record.key)
        atomic_write_bytes(path, encode_jpeg(draw_masks(image, record, shard=sample.shard), quality=QUALITY))
        number += 1
    return number
