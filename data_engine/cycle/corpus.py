"""The corpus before the first step: counted, and held against the pictures that no step may see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data_engine.cycle_folder.steps import Step
from sam_train.errors import ConfigError
from sam_train.files import atomic_write_bytes
from sam_train.shards import expand_shards
from sam_train.shards.index import index_shard
from sam_train.shards.maintenance.dedupe import find_duplicates

NUM_NAMED = 5


def check_corpus(cfg: DictConfig, run_dir: Path, steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Write corpus.json: what the corpus holds, and that nothing of it is held out.

    Raises ConfigError, naming pictures, when a held-out picture is in the corpus or among the masks that the cycle begins
    with, also resized or recompressed (`corpus.leak_bits` of 256 may differ), and when steps ask for more pictures than
    there are.
    """
    truth, heldout = expand_shards(cfg.corpus.ground_truth), expand_shards(cfg.corpus.heldout)
    seen = sorted({*truth, *(expand_shards(cfg.initial_model.shards) if cfg.initial_model.shards else [])})
    if both := {path.resolve() for path in seen} & {path.resolve() for path in heldout}:
        raise ConfigError(f"{min(both)} is in the corpus and held out: a model would be judged by what it learned")
    num_images = sum(len(index_shard(shard)) for shard in truth)
    check_enough_images(steps, num_images)
    found = find_duplicates(seen, heldout, threshold=cfg.corpus.leak_bits, workers=cfg.corpus.workers)
    leaks = [item for item in found.duplicates if item.leak]
    if leaks:
        named = "; ".join(
            f"{leak.place.shard} {leak.place.key} is {leak.kept.key}, {leak.distance} bits apart" for leak in leaks[:NUM_NAMED]
        )
        what_to_do = f"sam-data dedupe {cfg.corpus.ground_truth} --against {cfg.corpus.heldout} --out NEW leaves them out"
        raise ConfigError(f"{len(leaks)} held-out pictures are in the corpus: {named}; {what_to_do}")
    document = {
        "files": fingerprint(cfg),
        "num_images": num_images,
        "num_heldout": sum(len(index_shard(shard)) for shard in heldout),
        "num_compared": found.num_images,
        "num_unreadable": len(found.unreadable),
        "leak_bits": cfg.corpus.leak_bits,
    }
    atomic_write_bytes(run_dir / "corpus.json", (json.dumps(document, indent=1) + "\n").encode())
    unread = f", {len(found.unreadable)} do not decode" if found.unreadable else ""
    say(f"corpus: {num_images} images; none of {document['num_heldout']} held-out ones is among them{unread}")


def is_corpus_checked(cfg: DictConfig, run_dir: Path) -> bool:
    """Whether corpus.json speaks of the files that are there now."""
    path = run_dir / "corpus.json"
    if not path.is_file():
        return False
    try:
        return bool(read_corpus(run_dir)["files"] == fingerprint(cfg))
    except ConfigError:  # the shards are gone: what needs them will say so
        return False


def read_corpus(run_dir: Path) -> dict[str, Any]:
    """What `check_corpus` wrote."""
    return dict(json.loads((run_dir / "corpus.json").read_bytes()))


def fingerprint(cfg: DictConfig) -> str:
    """SHA-256 of the names, sizes and times of all shards that were looked at."""
    digest = hashlib.sha256()
    for shards in (cfg.corpus.ground_truth, cfg.corpus.heldout, cfg.initial_model.shards):
        for path in expand_shards(shards) if shards else []:
            stat = path.stat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def check_enough_images(steps: Sequence[Step], num_images: int) -> None:
    """Raise ConfigError when a step would have no pictures, or fewer than it asks for, should no budget end a stage."""
    end = 0
    for step in steps:
        first = end if step.first_image is None else step.first_image
        last = num_images if step.num_images is None else first + step.num_images
        if first >= num_images or last > num_images:
            wanted = f"images {first} to {last - 1}" if step.num_images else f"what is left from image {first}"
            raise ConfigError(
                f"{step.name} is to annotate {wanted}, and the corpus has {num_images}: ask for fewer or add images"
            )
        end = max(end, last)
