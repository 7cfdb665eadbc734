"""What watches a run: mask pictures for the logger, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger

from sam_train.structures import Batch


class LogMaskImages(Callback):
    """Logs validation images with the target and the mask after one click to wandb.

    num_images: pictures of the first validation batches. Does nothing without wandb's logger: the others have no mask
    pictures.
    """

    def __init__(self, num_images: int = 4) -> None:
        self.num_images = num_images
        self._pictures: list[Any] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect pictures until there are enough."""
        if len(self._pictures) < self.num_images and _wandb_logger(trainer) is not None:
            with_masks = batch.image_index.unique().tolist()  # a picture that cannot be used has none
            room = self.num_images - len(self._pictures)
            self._pictures += [self._picture(pl_module, batch, image) for image in with_masks[:room]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send them."""
        logger = _wandb_logger(trainer)
        if logger is not None and self._pictures:
            logger.experiment.log({"val/masks": self._pictures, "trainer/global_step": trainer.global_step})
        self._pictures = []

    @torch.inference_mode()
    def _picture(self, module: Any, batch: Batch, image: int) -> Any:
        import wandb

        chosen = (batch.image_index == image).nonzero()[:, 0]
        embeddings = module.model.encode_images(batch.images[image : image + 1], batch.sizes_hw[image : image + 1])
        targets = batch.target_masks[chosen]
        prompts = module.val_simulator.first_prompts(targets, torch.zeros_like(chosen), torch.Generator().manual_seed(0))
        best = module.model.decode(embeddings, prompts, multimask_output=True).best()
        answers = module._answers(best)
        height, width = batch.sizes_hw[image].tolist()
        layers = {
            name: {"mask_data": _label_map(masks)[:height, :width].cpu().numpy()}
            for name, masks in (("target", targets), ("one click", answers))
        }
        pixels = batch.images[image, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        return wandb.Image(pixels, masks=layers, caption=batch.keys[image])


class RunTimer(Callback):
    """Seconds that a run took, over all processes that worked on it.

    They travel in the checkpoints. A process that goes on counts from what the checkpoint had, so each finished part counts
    once: what a killed process did after its last checkpoint is lost, is done again, and counts when it is done again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started, self._before = clock, clock(), 0.0

    def seconds(self) -> float:
        """Until now: before the checkpoint that the run went on from, and in this process."""
        return self._before + self._clock() - self._started

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._before = float(state_dict["seconds"])


def _label_map(masks: torch.Tensor) -> torch.Tensor:
    """N x H x W bool to one H x W map, larger masks below smaller ones."""
    labels = torch.zeros(masks.shape[1:], dtype=torch.uint8, device=masks.device)
    for label, index in enumerate(masks.sum((1, 2)).argsort(descending=True).tolist()[:254], start=1):
        labels[masks[index]] = label
    return labels


def _wandb_logger(trainer: Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
