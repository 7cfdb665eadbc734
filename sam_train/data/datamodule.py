"""The Lightning data module: training and validation batches from shards."""

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

CACHE_DIR = "~/.cache/sam-train/shards"


class ShardDataModule(LightningDataModule):
    """Training shards, and validation shards if there are any.

    shards, val_shards: paths, globs, brace ranges or folders of .tar files, or URLs of them (s3://, gs://, https://).
    sources: instead of `shards`, a list of {shards, weight}: a sample of weight 10 is drawn ten times as often as one of
        weight 1 (paper: the masks of the first two stages, against those of the third).
    shuffle_window: number of shards whose samples are mixed. An epoch shuffles the shards, and the samples within a window.
    strict: end the run at a truncated or corrupt shard, instead of skipping it with a warning.
    cache_dir, cache_gb: folder and largest size of the local copies of remote shards.
    images_per_step: images of one optimiser step, over all devices: more devices get fewer images each. It must be a multiple
        of the number of devices.
    num_workers: number of loader processes; 0 loads in the training process.
    load_names: fill `Batch.names` with the names of the masks, where the shards have them.
    text_store: adds a text embedding to each mask; masks without one are dropped. One process computes those that are missing
        before the first step.
    image_size, max_masks, max_area_fraction, min_area_px, scale_jitter, flip, quarter_turns: as in `Transform`. Augmentation
        applies to training only; validation draws masks without it, the same ones each time.

    Raises ConfigError for shards that do not exist, and for settings that contradict each other.
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
        train_shards, weights = _training_shards(shards, sources)
        if not isinstance(images_per_step, int) or images_per_step < 1:
            raise ConfigError(f"data.images_per_step is {images_per_step}: expected an integer of at least 1")
        filters = {"max_masks": max_masks, "max_area_fraction": max_area_fraction, "min_area_px": min_area_px}
        augmentation = {"scale_jitter": tuple(scale_jitter), "flip": flip, "quarter_turns": quarter_turns}
        transform = Transform(image_size=image_size, load_names=load_names, **filters, **augmentation)  # type: ignore[arg-type]
        val_transform = Transform(image_size=image_size, load_names=load_names, **filters)  # type: ignore[arg-type]
        validation_shards = expand_local_and_remote(val_shards) if val_shards else []
        has_remote = any(isinstance(name, str) for name in [*train_shards, *validation_shards])
        cache = ShardCache(Path(cache_dir or CACHE_DIR).expanduser(), int(cache_gb * 1e9)) if has_remote else None
        train = index_shards(train_shards, weights=weights, cache=cache, strict=strict)
        self.train_set = ShardDataset(train, transform, seed=seed, shuffle=True, window=shuffle_window, text_store=text_store)
        self.val_set = None
        if validation_shards:
            val = index_shards(validation_shards, weights=None, cache=cache, strict=strict)
            options = {"seed": seed, "shuffle": False, "replace_unusable": False, "keep_sources": True, "text_store": text_store}
            self.val_set = ShardDataset(val, val_transform, **options)  # type: ignore[arg-type]
        self._text_store, self._shards = text_store, (train_shards, validation_shards)
        self.images_per_step, self.num_workers = images_per_step, num_workers
        self._position = 0

    def prepare_data(self) -> None:
        """Compute missing text embeddings. Lightning calls this in one process while the others wait."""
        for shards in self._shards if self._text_store else ():
            if shards:
                self._text_store.prepare(shards)  # type: ignore[union-attr]

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Return the endless training loader. It resumes at the position stored in the checkpoint."""
        return self._loader(self.train_set, start=self._position, num_positions=None)

    def val_dataloader(self) -> DataLoader[PackedBatch] | list[Any]:
        """Return a loader of each validation image once, without masks where it is unusable; [] without validation shards."""
        return self._loader(self.val_set, start=0, num_positions=len(self.val_set)) if self.val_set else []

    def on_after_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> Batch:
        """Unpack the batch on the device of the training step."""
        return batch.unpack()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next image, counted in images of finished steps.

        Batches that workers have prefetched are not lost, and a run that resumes on another number of devices neither repeats
        nor skips an image.
        """
        trainer = self.trainer
        if trainer is None:
            return {"position": self._position}
        return {"position": trainer.global_step * self.images_per_step}

    def images_per_device(self, world_size: int) -> int:
        """Return the number of images of a step on each of `world_size` devices.

        Raises ConfigError if the images of a step cannot be split evenly.
        """
        share, remainder = divmod(self.images_per_step, world_size)
        if remainder or not share:
            remedy = f"a multiple of {world_size}, or another number of devices"
            raise ConfigError(
                f"data.images_per_step={self.images_per_step} cannot be split evenly over {world_size} devices: give {remedy}"
            )
        return share

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position. Lightning calls this before it creates the loaders."""
        self._position = int(state_dict["position"])

    def _loader(self, dataset: ShardDataset, *, start: int, num_positions: int | None) -> DataLoader[PackedBatch]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if dataset.shards.num_images < world_size:
            message = f"{dataset.shards.num_images} images are too few for {world_size} devices: each needs at least one"
            raise ConfigError(f"{message}, so give more shards or fewer trainer.devices")
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
    """Set up a loader process before its first sample."""
    ignore_job_signals()
    tune_malloc()


def ignore_job_signals() -> None:
    """Ignore SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in this process.

    Ctrl-C and a cluster send their signals to all processes of a job, and only the training process may act on them: if a loader
    process died of one, the training process would fail before it has written its checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _training_shards(
    shards: str | Sequence[str] | None, sources: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Path | str], list[float] | None]:
    """Return the training shards and their weights, from `shards` or `sources`."""
    if bool(shards) == bool(sources):
        problem = "data.shards and data.sources are both set" if shards else "data.shards is empty, and so is data.sources"
        raise ConfigError(f"{problem}: give data.shards='FOLDER/*.tar' or data.sources=[{{shards: FOLDER, weight: 10}}, ...]")
    return expand_sources(sources) if sources else (expand_local_and_remote(shards or []), None)
