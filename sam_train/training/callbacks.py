"""Callbacks that log mask images and measure the duration of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger

from sam_train.structures import Batch
from sam_train.training.click_validation import predicted_masks, validation_simulator


class LogMaskImages(Callback):
    """Logs validation images with their ground-truth masks and the masks predicted from one click to wandb.

    num_images: number of images, from the first validation batches. Without a wandb logger nothing is logged: other loggers do
    not support mask overlays.
    """

    def __init__(self, num_images: int = 4) -> None:
        self.num_images = num_images
        self._images: list[Any] = []
        self._simulator = validation_simulator()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect images until there are `num_images`."""
        if len(self._images) < self.num_images and _wandb_logger(trainer) is not None:
            with_masks = batch.image_index.unique().tolist()  # a skipped image has no masks
            room = self.num_images - len(self._images)
            self._images += [self._overlay(pl_module, batch, image) for image in with_masks[:room]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the collected images."""
        logger = _wandb_logger(trainer)
        if logger is not None and self._images:
            logger.experiment.log({"val/masks": self._images, "trainer/global_step": trainer.global_step})
        self._images = []

    @torch.inference_mode()
    def _overlay(self, module: Any, batch: Batch, image: int) -> Any:
        import wandb

        rows, model = (batch.image_index == image).nonzero()[:, 0], module.model
        embeddings = model.encode_images(batch.images[image : image + 1], batch.sizes_hw[image : image + 1])
        targets = batch.target_masks[rows]
        prompts = self._simulator.first_prompts(targets, torch.zeros_like(rows), torch.Generator().manual_seed(0))
        best = model.decode(embeddings, prompts, multimask_output=True).best()
        predictions = predicted_masks(best, model.image_size)
        height, width = batch.sizes_hw[image].tolist()
        layers = {
            name: {"mask_data": _label_map(masks)[:height, :width].cpu().numpy()}
            for name, masks in (("target", targets), ("one click", predictions))
        }
        pixels = batch.images[image, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        return wandb.Image(pixels, masks=layers, caption=batch.keys[image])


class RunTimer(Callback):
    """Measures the duration of a run in seconds, summed over the processes that resumed it.

    The duration is stored in checkpoints, and a process that resumes a run adds to it. The time between the last checkpoint and a
    kill is not counted; the steps that were lost are counted when they are repeated.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._earlier_seconds = clock, clock(), 0.0

    def seconds(self) -> float:
        """Return the duration until now: up to the checkpoint from which the run resumed, plus that of this process."""
        return self._earlier_seconds + self._clock() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the duration until now, for the checkpoint."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the duration up to the checkpoint."""
        self._earlier_seconds = float(state_dict["seconds"])


def _label_map(masks: torch.Tensor) -> torch.Tensor:
    """Return one H x W label map of N x H x W masks, with smaller masks drawn over larger ones."""
    labels = torch.zeros(masks.shape[1:], dtype=torch.uint8, device=masks.device)
    for label, index in enumerate(masks.sum((1, 2)).argsort(descending=True).tolist()[:254], start=1):
        labels[masks[index]] = label
    return labels


def _wandb_logger(trainer: Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
