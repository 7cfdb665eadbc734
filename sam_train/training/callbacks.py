"""Masks drawn on validation images, for the loggers that show images: wandb, TensorBoard and MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from sam_train.shards.drawing import OPACITY, draw_border, fill_mask, mask_colour
from sam_train.structures import Batch
from sam_train.training.click_validation import predicted_masks, validation_simulator


@dataclass(frozen=True, slots=True)
class MaskImage:
    """An image in the model frame (S x S x 3 uint8) with n target masks and n masks predicted from one click (n x S x S bool)."""

    key: str
    pixels: np.ndarray
    targets: np.ndarray
    predictions: np.ndarray

    def draw(self) -> np.ndarray:
        """Return the image twice side by side, S x 2S x 3 uint8: with the target masks, and with the predicted masks."""
        return np.concatenate([_draw(self.pixels, masks) for masks in (self.targets, self.predictions)], axis=1)


class LogMaskImages(Callback):
    """Logs validation images with their target masks and the masks predicted from one click, to each logger that shows images.

    num_images: number of images, from the first validation batches.
    """

    def __init__(self, num_images: int = 4) -> None:
        self.num_images = num_images
        self._images: list[MaskImage] = []
        self._simulator = validation_simulator()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect images until there are `num_images`."""
        room = self.num_images - len(self._images)
        if room > 0 and any(isinstance(logger, tuple(_LOG)) for logger in trainer.loggers):
            with_masks = batch.image_index.unique().tolist()  # a skipped image has no masks
            self._images += [self._predict(pl_module, batch, image) for image in with_masks[:room]]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the collected images."""
        for logger in trainer.loggers if self._images and trainer.is_global_zero else ():
            for kind, log_images in _LOG.items():
                if isinstance(logger, kind):
                    log_images(logger, self._images, trainer.global_step)
        self._images = []

    @torch.inference_mode()
    def _predict(self, module: Any, batch: Batch, image: int) -> MaskImage:
        rows, model = (batch.image_index == image).nonzero()[:, 0], module.model
        embeddings = model.encode_images(batch.images[image : image + 1], batch.sizes_hw[image : image + 1])
        targets = batch.target_masks[rows]
        prompts = self._simulator.first_prompts(targets, torch.zeros_like(rows), torch.Generator().manual_seed(0))
        predictions = predicted_masks(model.decode(embeddings, prompts, multimask_output=True).best(), model.image_size)
        pixels = batch.images[image].permute(1, 2, 0).cpu().numpy()
        return MaskImage(batch.keys[image], pixels, targets.cpu().numpy(), predictions.cpu().numpy())


def _log_to_wandb(logger: Any, images: list[MaskImage], step: int) -> None:
    import wandb

    overlays = [
        wandb.Image(
            image.pixels,
            masks={
                name: {"mask_data": _label_map(masks)}
                for name, masks in (("target", image.targets), ("one click", image.predictions))
            },
            caption=image.key,
        )
        for image in images
    ]
    logger.experiment.log({"val/masks": overlays, "trainer/global_step": step})


def _log_to_tensorboard(logger: Any, images: list[MaskImage], step: int) -> None:
    for image in images:
        logger.experiment.add_image(f"val/masks/{image.key}", image.draw(), step, dataformats="HWC")


def _log_to_mlflow(logger: Any, images: list[MaskImage], step: int) -> None:
    for image in images:
        logger.experiment.log_image(logger.run_id, image.draw(), artifact_file=f"val_masks/step_{step:07d}/{image.key}.png")


_LOG: dict[type[Logger], Any] = {
    WandbLogger: _log_to_wandb,
    TensorBoardLogger: _log_to_tensorboard,
    MLFlowLogger: _log_to_mlflow,
}
"""The function that logs images, by the class of the logger."""


def _largest_first(masks: np.ndarray) -> list[int]:
    """Return the indices of N x H x W masks such that smaller masks are drawn over larger ones."""
    order: list[int] = np.argsort(-masks.sum((1, 2)), kind="stable").tolist()
    return order


def _draw(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    canvas = pixels.astype(np.float32, order="C")  # OpenCV draws on contiguous pixels
    for index in _largest_first(masks):
        fill_mask(canvas, masks[index].astype(np.float32), mask_colour(index), opacity=OPACITY)
    drawn = canvas.astype(np.uint8)
    for index in _largest_first(masks):
        draw_border(drawn, masks[index].astype(np.float32), mask_colour(index, bright=True), thickness=1)
    return drawn


def _label_map(masks: np.ndarray) -> np.ndarray:
    """Return one H x W uint8 label map of N x H x W masks."""
    labels = np.zeros(masks.shape[1:], np.uint8)
    for label, index in enumerate(_largest_first(masks)[:254], start=1):
        labels[masks[index]] = label
    return labels
