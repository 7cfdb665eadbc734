"""Images that a predictor holds: their embeddings, and the conversion of prompts between their frames and the model frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.geometry import Resampling, Resize, pad_to_square, resize_image
from sam_train.inference.argument_checks import check_flag, invalid
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.image_input import ImageInput, to_rgb
from sam_train.model import Sam
from sam_train.structures import PointLabel, Prediction, Prompts


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Embeddings of B images and their resizing to the model frame. Create it with `encode`."""

    embeddings: Float[Tensor, "B E h w"]
    resizes: tuple[Resize, ...]

    @staticmethod
    @torch.no_grad()
    def encode(
        model: Sam, images: Sequence[ImageInput], cache: EmbeddingCache | None, resampling: Resampling, image_format: str
    ) -> EncodedImages:
        """Encode images in one batch, except for those whose embeddings the cache holds. Raises ValueError as `to_rgb`."""
        names = ["image"] if len(images) == 1 else [f"image {i}" for i in range(len(images))]
        pixels = [to_rgb(image, image_format, name=name) for image, name in zip(images, names, strict=True)]
        resizes = [Resize(image.shape[0], image.shape[1], model.image_size) for image in pixels]
        device = model.pixel_mean.device
        embeddings: list[Tensor | None] = [cache.load(image) if cache else None for image in pixels]
        missing = [i for i, embedding in enumerate(embeddings) if embedding is None]
        if missing:
            scaled = [resize_image(pixels[i], *resizes[i].scaled_hw, resampling) for i in missing]
            frames = [pad_to_square(image, model.image_size) for image in scaled]
            encoded = EncodedImages.encode_frames(model, frames, [resizes[i] for i in missing]).embeddings
            for i, embedding in zip(missing, encoded, strict=True):
                # Rounded as the cache stores it: otherwise the first prediction would differ from all later ones.
                embeddings[i] = cache.save(pixels[i], embedding) if cache else embedding
        dtype = model.pixel_mean.dtype
        return EncodedImages(torch.stack([e.to(device, dtype) for e in embeddings if e is not None]), tuple(resizes))

    @staticmethod
    @torch.no_grad()
    def encode_frames(model: Sam, frames: Sequence[np.ndarray], resizes: Sequence[Resize]) -> EncodedImages:
        """Encode images that are already in the model frame, S x S x 3 uint8 RGB."""
        device = model.pixel_mean.device
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(device)
        sizes_hw = torch.tensor([resize.scaled_hw for resize in resizes], device=device)
        return EncodedImages(model.encode_images(pixels, sizes_hw), tuple(resizes))

    def __len__(self) -> int:
        return len(self.resizes)

    def resize(self, image_index: int | None) -> Resize:
        """Return the resizing of an image; None is the only one.

        Raises RuntimeError for None if there are several, ValueError for an index out of range.
        """
        if image_index is None and len(self) > 1:
            raise RuntimeError(f"{len(self)} images were set: pass image_index, or use predict_batch or masks_to_images")
        if image_index is not None and not 0 <= image_index < len(self):
            raise invalid("image_index", f"from 0 to {len(self) - 1}, as {len(self)} images were set", image_index)
        return self.resizes[image_index or 0]

    def to_model_frame(self, prompts: Prompts) -> Prompts:
        """Return prompts on the images' device, their points converted from the image frame to the model frame.

        Raises ValueError for an image index out of range, an invalid label, and NaN or infinite coordinates.
        """
        prompts = prompts.to(self.embeddings.device)
        num_images, index, labels = len(self), prompts.image_index, prompts.point_labels
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_images):
            raise ValueError(
                f"image_index ranges from {index.min()} to {index.max()}, but {num_images} images were set: "
                f"expected 0 to {num_images - 1}"
            )
        if bool(((labels < min(PointLabel)) | (labels > max(PointLabel))).any()):
            raise invalid("point_labels", f"from {min(PointLabel)} to {max(PointLabel)}", labels.unique().tolist())
        if not bool(prompts.points_xy.isfinite().all()):
            raise invalid("points_xy", "finite", prompts.points_xy[~prompts.points_xy.isfinite()][0].item())
        points = prompts.points_xy.float().clone()
        for i, resize in enumerate(self.resizes):
            # Padding points are scaled too; the prompt encoder ignores their coordinates.
            points[index == i] = resize.points_to_model(points[index == i])
        return replace(prompts, points_xy=points)

    def decode(self, model: Sam, model_prompts: Prompts, multimask_output: bool, min_iou: float | None) -> Prediction:
        """Decode prompts in the model frame. Raises ValueError for mask prompts of another size than the decoder's grid."""
        check_flag("multimask_output", multimask_output)
        prompts = model_prompts.to(self.embeddings.device)
        if (logits := prompts.mask_logits) is not None:
            size = model.logits_size
            if logits.shape[2:] != (size, size):
                expected = f"logits of {size} x {size}, the decoder's grid (mask_to_logits makes them from a mask)"
                raise invalid("mask_input", expected, got=f"{logits.shape[2]} x {logits.shape[3]}")
        return model.decode(self.embeddings, prompts, multimask_output=multimask_output, min_iou=min_iou)
