"""Estimate, before a run starts, how many masks of a dataset its options drop."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sam_train.data.dataset import ShardDataset
from sam_train.data.record_parser import parse_target_record
from sam_train.errors import ShardError
from sam_train.shards.index import read_sample_bytes
from sam_train.shards.tar_members import open_local_shard
from sam_train.subsets import evenly_spaced_indices

MAX_IMAGES = 64
"""Largest number of images whose masks are counted."""


def describe_dropped_masks(dataset: ShardDataset, max_images: int = MAX_IMAGES) -> str:
    """Return a sentence on the masks that options of `data` drop from an evenly spaced sample of images; "" if none are.

    No image is decoded. Images without a valid record are left out; remote shards are not read.
    """
    num_images = num_masks = 0
    dropped: Counter[str] = Counter()
    is_local = dataset.shards.open_shard is open_local_shard
    for position in evenly_spaced_indices(len(dataset), max_images) if is_local else ():
        entry = dataset.entry(position)
        try:
            record = parse_target_record(read_sample_bytes(entry)[1], key=entry.key, shard=str(entry.shard))
            kept, dropped_here = dataset.transform.count_masks(record, np.random.default_rng([dataset.seed, position]))
        except ShardError:
            continue
        num_images, num_masks = num_images + 1, num_masks + kept + sum(dropped_here.values())
        dropped.update(dropped_here)
    if not dropped:
        return ""
    parts = [f"{num} by data.{option}={getattr(dataset.transform, option)}" for option, num in dropped.items()]
    which = f"all {num_images}" if num_images == len(dataset) else f"{num_images} of {len(dataset)}"
    return f"of the {num_masks} masks in {which} images, an epoch leaves out {', '.join(parts)}"
