"""Shards to batches, as Lightning wants them."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from sam_train.data.collate import collate
from sam_train.data.dataset import ShardDataset
from sam_train.data.malloc_tuning import tune_malloc
from sam_train.data.packed_batch import PackedBatch
from sam_train.data.sampler import DistributedPositionSampler
from sam_train.data.sources import expand_sources, index_shards
from sam_train.data.transforms import Transform
from sam_train.errors import ConfigError
from sam_train.shards.cache import ShardCache
from sam_train.shards.remote import expand_local_and_remote
from sam_train.structures import Batch
from sam_train.text import TextEmbeddingStore

CACHE = "~/.cache/sam-train/shards"


class ShardDataModule(LightningDataModule):
    """Training shards, and validation shards if any.

    shards, val_shards: paths, globs, brace ranges or folders of .tar files; URLs too (s3://, gs://, https://).
    sources: in place of `shards`, a list of {shards, weight}: a sample of weight 10 comes ten times as often as one of
        weight 1 (paper: the masks of the first two stages, against those of the third).
    shuffle_window: shards whose samples are mixed; an epoch shuffles shards, and samples within so many of them.
    strict: a torn shard ends the run, instead of being left out with a warning.
    cache_dir, cache_gb: where copies of remote shards are kept, and how much of them.
    images_per_step: images in one optimiser step, over all devices: with more of them each has fewer. Each device must have
        as many as the others.
    num_workers: loader processes; 0 loads in the training process.
    names: batches carry what each mask shows (`Batch.names`), where the shards know.
    texts: batches carry embeddings of the words of their masks; masks without words are left out. Made before the first step,
        by one process, where they are not there yet.
    Augmentation (see Transform) is for training only; validation takes the first masks in a fixed draw.
    """

    def __init__(
        self,
        *,
        shards: str | Sequence[str] | None = None,
        sources: Sequence[Mapping[str, Any]] | None = None,
        val_shards: str | Sequence[str] | None = None,
        image_size: int,
        images_per_step: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_window: int = 16,
        strict: bool = False,
        cache_dir: str | None = None,
        cache_gb: float = 50.0,
        max_masks: int = 64,
        max_area_fraction: float = 0.9,
        min_area_px: int = 16,
        scale_jitter: Sequence[float] = (1.0, 1.0),
        flip: bool = False,
        quarter_turns: bool = False,
        load_names: bool = False,
        text_store: TextEmbeddingStore | None = None,
    ) -> None:
        super().__init__()
        sets, weights = _training_names(shards, sources)
        if not isinstance(images_per_step, int) or images_per_step < 1:
            raise ConfigError(f"data.images_per_step is {images_per_step}: expected a whole number of at least 1")
        filters = {"max_masks": max_masks, "max_area_fraction": max_area_fraction, "min_area_px": min_area_px}
        augmentation = {"scale_jitter": tuple(scale_jitter), "flip": flip, "quarter_turns": quarter_turns}
        transform = Transform(image_size=image_size, load_names=load_names, **filters, **augmentation)  # type: ignore[arg-type]
        plain = Transform(image_size=image_size, load_names=load_names, **filters)  # type: ignore[arg-type]
        val_names = expand_local_and_remote(val_shards) if val_shards else []
        far = any(isinstance(name, str) for name in [*sets, *val_names])
        cache = ShardCache(Path(cache_dir or CACHE).expanduser(), int(cache_gb * 1e9)) if far else None
        found = index_shards(sets, weights=weights, cache=cache, strict=strict)
        self.train_set = ShardDataset(found, transform, seed=seed, shuffle=True, window=shuffle_window, text_store=text_store)
        self.val_set = None
        if val_names:
            held = index_shards(val_names, weights=None, cache=cache, strict=strict)
            self.val_set = ShardDataset(held, plain, seed=seed, shuffle=False, replace_unusable=False, text_store=text_store)
        self._text_store, self._sets = text_store, (sets, val_names)
        self.images_per_step, self.num_workers = images_per_step, num_workers
        self._position = 0

    def prepare_data(self) -> None:
        """Embed the words of all masks; Lightning asks one process to, and the others wait."""
        for names in self._sets if self._text_store else ():
            if names:
                self._text_store.prepare(names)  # type: ignore[union-attr]

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Endless; goes on at the position that the checkpoint had."""
        return self._loader(self.train_set, start=self._position, num_positions=None)

    def val_dataloader(self) -> DataLoader[PackedBatch] | list[Any]:
        """Every validation image once, without masks where it cannot be used; no loader without validation shards."""
        return self._loader(self.val_set, start=0, num_positions=len(self.val_set)) if self.val_set else []

    def on_after_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> Batch:
        """Paint the masks, on the device on which the step wants them."""
        return batch.unpack()

    def state_dict(self) -> dict[str, Any]:
        """The next position. Counted in images of finished steps: what workers fetched ahead is not lost, and a run that goes on
        with another number of devices repeats none and leaves none out."""
        trainer = self.trainer
        if trainer is None:
            return {"position": self._position}
        return {"position": trainer.global_step * self.images_per_step}

    def images_per_device(self, world_size: int) -> int:
        """Images of a step for each of so many devices. Raises ConfigError when they cannot have equally many."""
        share, left = divmod(self.images_per_step, world_size)
        if left or not share:
            wanted = f"a multiple of {world_size}, or another number of devices"
            raise ConfigError(
                f"data.images_per_step={self.images_per_step} cannot be dealt to {world_size} devices: give {wanted}"
            )
        return share

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning before the loaders are made."""
        self._position = int(state_dict["position"])

    def _loader(self, dataset: ShardDataset, *, start: int, num_positions: int | None) -> DataLoader[PackedBatch]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if dataset.shards.num_images < world_size:
            message = f"{dataset.shards.num_images} images are too few for {world_size} devices: each needs one of its own"
            raise ConfigError(f"{message}, give more shards or fewer trainer.devices")
        if not self.num_workers:
            tune_malloc()
        sampler = DistributedPositionSampler(start=start, num_positions=num_positions, rank=rank, world_size=world_size)
        return DataLoader(
            dataset,  # type: ignore[arg-type] # collate_fn makes batches of its samples
            batch_size=self.images_per_device(world_size),
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=init_worker,
        )


def init_worker(worker: int) -> None:
    """In a loader process, before its first sample."""
    ignore_job_signals()
    tune_malloc()


def ignore_job_signals() -> None:
    """A cluster sends its signals to all processes of a job, and only the training one may act on them.

    A loader that died of one would take the training process along, before that has written its checkpoint.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _training_names(
    shards: str | Sequence[str] | None, sources: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Path | str], list[float] | None]:
    if bool(shards) == bool(sources):
        named = "both data.shards and data.sources name something" if shards else "data.shards names nothing"
        raise ConfigError(f"{named}: give data.shards='FOLDER/*.tar' or data.sources=[{{shards: FOLDER, weight: 10}}, ...]")
    return expand_sources(sources) if sources else (expand_local_and_remote(shards or []), None)
