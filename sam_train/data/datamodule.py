"""Shards to batches, as Lightning wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from sam_train.data.collate import collate
from sam_train.data.dataset import PositionSampler, ShardDataset
from sam_train.data.transforms import Transform
from sam_train.errors import ConfigError
from sam_train.shards import expand_shards
from sam_train.structures import Batch


class ShardDataModule(LightningDataModule):
    """Training shards, and validation shards if any.

    shards, val_shards: paths, globs, brace ranges or folders of .tar files.
    images_per_step: images on one device in one optimiser step.
    num_workers: loader processes; 0 loads in the training process.
    Augmentation (see Transform) is for training only; validation takes the first masks in a fixed draw.
    """

    def __init__(
        self,
        *,
        shards: str | Sequence[str],
        val_shards: str | Sequence[str] | None = None,
        image_size: int,
        images_per_step: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        max_masks: int = 64,
        max_area_fraction: float = 0.9,
        min_area_px: int = 16,
        scale_jitter: Sequence[float] = (1.0, 1.0),
        flip: bool = False,
        quarter_turns: bool = False,
    ) -> None:
        super().__init__()
        if shards is None or not len(shards):
            raise ConfigError("data.shards names nothing: give data.shards='FOLDER/*.tar'")
        filters = {"max_masks": max_masks, "max_area_fraction": max_area_fraction, "min_area_px": min_area_px}
        augmentation = {"scale_jitter": tuple(scale_jitter), "flip": flip, "quarter_turns": quarter_turns}
        if not isinstance(images_per_step, int) or images_per_step < 1:
            raise ConfigError(f"data.images_per_step is {images_per_step}: expected a whole number of at least 1")
        transform = Transform(image_size=image_size, **filters, **augmentation)  # type: ignore[arg-type]
        plain = Transform(image_size=image_size, **filters)  # type: ignore[arg-type]
        self.train_set = ShardDataset(expand_shards(shards), transform, seed=seed, shuffle=True)
        self.val_set = None
        if val_shards:
            self.val_set = ShardDataset(expand_shards(val_shards), plain, seed=seed, shuffle=False, replace_unusable=False)
        self.images_per_step, self.num_workers = images_per_step, num_workers
        self._position = 0

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless; goes on at the position that the checkpoint had."""
        return self._loader(self.train_set, start=self._position, num_positions=None)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Every validation image once, without masks where it cannot be used; no loader without validation shards."""
        return self._loader(self.val_set, start=0, num_positions=len(self.val_set)) if self.val_set else []

    def state_dict(self) -> dict[str, Any]:
        """The next position. Counted in finished steps, so what workers fetched ahead is not lost."""
        trainer = self.trainer
        if trainer is None:
            return {"position": self._position}
        return {"position": trainer.global_step * self.images_per_step * trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning before the loaders are made."""
        self._position = int(state_dict["position"])

    def _loader(self, dataset: ShardDataset, *, start: int, num_positions: int | None) -> DataLoader[Batch]:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = PositionSampler(start=start, num_positions=num_positions, rank=rank, world_size=world_size)
        return DataLoader(
            dataset,  # type: ignore[arg-type] # collate_fn makes batches of its samples
            batch_size=self.images_per_step,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
        )
