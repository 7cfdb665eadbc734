"""Check of the corpus before the first step: its size, and that none of its images is a held-out one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from data_engine.cycle_folder import CycleFolder, Step
from sam_train.errors import ConfigError
from sam_train.shards import expand_shards
from sam_train.shards.index import index_shard
from sam_train.shards.maintenance.dedupe import find_duplicates

MAX_NAMED_LEAKS = 5


def check_corpus(cfg: DictConfig, folder: CycleFolder, steps: Sequence[Step], log: Callable[[str], None]) -> None:
    """Check the corpus and write the result to corpus.json.

    Raises ConfigError, naming images, if a held-out image is in the corpus or in `initial_model.shards`, also resized or
    recompressed (`corpus.leak_bits` of 256 hash bits may differ), or if the steps need more images than there are.
    """
    corpus, heldout = expand_shards(cfg.corpus.ground_truth), _heldout_shards(cfg)
    initial = expand_shards(cfg.initial_model.shards) if cfg.initial_model.shards else []
    training = sorted({*corpus, *initial})
    if shared := {path.resolve() for path in training} & {path.resolve() for path in heldout}:
        message = "is used for training and held out: models would be compared on images that they were trained on"
        raise ConfigError(f"{min(shared)} {message}")
    num_images = sum(len(index_shard(shard)) for shard in corpus)
    check_enough_images(steps, num_images)
    result = find_duplicates(training, heldout, threshold=cfg.corpus.leak_bits, workers=cfg.corpus.workers)
    leaks = [duplicate for duplicate in result.duplicates if duplicate.leak]
    if leaks:
        named = "; ".join(
            f"{leak.location.shard} {leak.location.key} is {leak.kept.key}, {leak.distance} bits apart"
            for leak in leaks[:MAX_NAMED_LEAKS]
        )
        remedy = f"sam-data dedupe {cfg.corpus.ground_truth} --against {cfg.corpus.heldout} --out NEW removes them"
        raise ConfigError(f"{len(leaks)} held-out images are in the corpus: {named}; {remedy}")
    num_heldout = sum(len(index_shard(shard)) for shard in heldout)
    folder.write_corpus(
        {
            "files": fingerprint(cfg),
            "num_images": num_images,
            "num_heldout": num_heldout,
            "num_compared": result.num_images,
            "num_unreadable": len(result.unreadable),
            "leak_bits": cfg.corpus.leak_bits,
        }
    )
    unreadable = f"; {len(result.unreadable)} do not decode and were not compared" if result.unreadable else ""
    log(f"corpus: {num_images} images, none of them among the {num_heldout} held-out ones{unreadable}")


def _heldout_shards(cfg: DictConfig) -> list[Path]:
    """Return the shards that no model may be trained on: the held-out and the final ones."""
    final = expand_shards(cfg.corpus.final) if cfg.corpus.get("final") else []
    return [*expand_shards(cfg.corpus.heldout), *final]


def is_corpus_checked(cfg: DictConfig, folder: CycleFolder) -> bool:
    """Return whether corpus.json describes the shards as they are now."""
    corpus = folder.read_corpus()
    if corpus is None:
        return False
    try:
        return bool(corpus["files"] == fingerprint(cfg))
    except ConfigError:  # shards are missing; the action that reads them reports it
        return False


def fingerprint(cfg: DictConfig) -> str:
    """Return the SHA-256 of the names, sizes and modification times of all shards that were compared."""
    digest = hashlib.sha256()
    final = [cfg.corpus.final] if cfg.corpus.get("final") else []
    for shards in (cfg.corpus.ground_truth, cfg.corpus.heldout, cfg.initial_model.shards, *final):
        for path in expand_shards(shards) if shards else []:
            stat = path.stat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def check_enough_images(steps: Sequence[Step], num_images: int) -> None:
    """Raise ConfigError if a step would have no images, or fewer than its `num_images`, in case no budget ends a stage."""
    end = 0
    for step in steps:
        first = end if step.first_image is None else step.first_image
        last = num_images if step.num_images is None else first + step.num_images
        if first >= num_images or last > num_images:
            images = f"images {first} to {last - 1}" if step.num_images else f"all images from {first} on"
            raise ConfigError(f"{step.name} is to annotate {images}, but the corpus has {num_images}: use fewer or add images")
        end = max(end, last)
