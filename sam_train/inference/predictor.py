"""Prompted segmentation: `set_image` once, which is slow; `predict` many times, which is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from sam_train.geometry import Resampling, Resize, pad_to_square, resize_image
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.mask_rasterizer import stability_scores
from sam_train.inference.prompt_arrays import make_prompts
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.structures import Prediction, Prompts


@runtime_checkable  # for isinstance checks in the tests
class PredictorLike(Protocol):
    """A predictor that holds its images: `Predictor`, or one whose decoder runs on another machine."""

    @property
    def device(self) -> torch.device:
        """Device of the predictions."""
        ...

    def predict(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        """Return logits on the decoder's grid and IoU scores, as `Predictor.predict`."""
        ...

    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Return masks at the resolution of the image, as `Predictor.masks_to_image`."""
        ...

    def stability_scores(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M"]:
        """Return stability scores at the resolution of the image, as `Predictor.stability_scores`."""
        ...


class Predictor:
    """Prompted segmentation of one image or several, with any number of prompts at once.

    Corresponds to segment_anything's SamPredictor. Prompts and masks are in the image frame, whose unit is the pixel of the
    image as it was passed; resizing to the model frame is internal. `predict` returns low-resolution logits, so that only masks
    that are used are brought to the size of the image.

    Example:

        predictor = load_predictor("model.pt", "cuda")
        predictor.set_image(image)                                       # H x W x 3 uint8 RGB
        prompts = make_prompts(points_xy=np.array([[320, 240]]), device=predictor.device)
        best = predictor.predict(prompts, multimask_output=True).best()  # the candidate of highest predicted IoU
        mask = predictor.masks_to_image(best.mask_logits)[0, 0]          # H x W bool

        # The same click with a correction, and the previous logits as mask prompt:
        prompts = make_prompts(
            points_xy=np.array([[[320, 240], [400, 60]]]), point_labels=np.array([[1, 0]]), mask_logits=best.mask_logits,
            device=predictor.device,
        )
        prediction = predictor.predict(prompts, multimask_output=False)

    model: set to eval mode; its device computes.
    cache: stores embeddings on disk so that an image is encoded only once; it must be that of the model's checkpoint.
    resampling: interpolation with which images are resized to the model frame (`geometry.resize_image`).
    Raises ValueError for a cache together with a resampling other than "area", which the cache does not record.
    """

    def __init__(self, model: Sam, cache: EmbeddingCache | None = None, *, resampling: Resampling = "area") -> None:
        if cache is not None and resampling != "area":
            raise ValueError(
                f"an embedding cache holds embeddings of images resized with resampling='area': "
                f"omit the cache with resampling={resampling!r}"
            )
        self.model = model.eval()
        self.cache, self.resampling = cache, resampling
        self._embeddings: Tensor | None = None
        self._resizes: list[Resize] = []

    @property
    def device(self) -> torch.device:
        """Device of the model and of the predictions."""
        return self.model.pixel_mean.device

    @property
    def image_embeddings(self) -> Float[Tensor, "B E h w"]:
        """Embeddings of the images that were set, B x E x h x w. Raises ValueError if no image was set."""
        return self._require_embeddings()

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image; later calls of `predict` refer to it.

        image: H x W x 3 uint8 RGB, of any size. Raises ValueError for another shape or dtype.
        """
        self.set_images([image])

    @torch.inference_mode()
    def set_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode B images in one batch; prompts refer to them by `image_index` 0 ... B - 1.

        images: H x W x 3 uint8 RGB each, of any sizes. Raises ValueError for an empty sequence and for another shape or dtype.
        """
        if not images:
            raise ValueError("expected at least one image, got none")
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"expected an H x W x 3 uint8 RGB image, got shape {image.shape} of {image.dtype}")
        resizes = [Resize(image.shape[0], image.shape[1], self.model.image_size) for image in images]
        embeddings = [self._load_cached(image) for image in images]
        missing = [i for i, embedding in enumerate(embeddings) if embedding is None]
        if missing:
            encoded = self._encode([images[i] for i in missing], [resizes[i] for i in missing])
            for i, embedding in zip(missing, encoded, strict=True):
                # Rounded as the cache stores it: otherwise the first prediction would differ from all later ones.
                embeddings[i] = self.cache.save(images[i], embedding).to(self.device) if self.cache else embedding
        self._embeddings, self._resizes = torch.stack([e for e in embeddings if e is not None]), resizes

    def segment(
        self,
        *,
        points_xy: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes_xyxy: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[Bool[np.ndarray, "N M H W"], Float[np.ndarray, "N M"]]:
        """Return masks of the image that was set as NumPy arrays: the short way for one image and few prompts.

        points_xy: N x 2 for one click per object, or N x P x 2 for P clicks per object; pixels of the image frame.
        point_labels: N or N x P, 1 for foreground and 0 for background; foreground if omitted.
        boxes_xyxy: N x 4, left, top, right, bottom in pixels of the image frame.
        multimask_output: with True, M = 3 candidate masks per object, for ambiguous prompts such as one click; else M = 1.

        Returns the masks at the size of the image, and the model's estimates of their IoU, about 0 to 1.

        Raises ValueError if no image or several images were set, and for prompts that `make_prompts` refuses.
        """
        arrays = {"points_xy": points_xy, "point_labels": point_labels, "boxes_xyxy": boxes_xyxy}
        given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
        prediction = self.predict(make_prompts(**given, device=self.device), multimask_output=multimask_output)
        masks = self.masks_to_image(prediction.mask_logits)
        return masks.cpu().numpy(), prediction.iou_scores.float().cpu().numpy()

    @torch.inference_mode()
    def predict(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        """Decode N prompts on the images that were set.

        prompts: coordinates in pixels of the image frame; `make_prompts` builds them from arrays. `prompts.image_index` is 0
            if one image was set.
        multimask_output: with True, M = 3 candidate masks per prompt, for ambiguous prompts such as a single click; else M = 1.
        min_iou: the logits of prompts none of whose scores reaches it are -inf, which saves their upscaling; None upscales all.

        Returns mask_logits N x M x h x w on the decoder's grid (h = w = a quarter of the model frame's side with 16-pixel
        patches; a mask is where they exceed 0) and iou_scores N x M, the model's estimates of the masks' IoU, about 0 to 1.
        `masks_to_image` brings the logits to the size of the image.

        Raises ValueError if no image was set and for an `image_index` out of range.
        """
        model_prompts = self._to_model_frame(prompts)
        return self.model.decode(self._require_embeddings(), model_prompts, multimask_output=multimask_output, min_iou=min_iou)

    @torch.inference_mode()
    def decode_jobs(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> list[DecodeJob]:
        """Prepare `predict` for callers that decode the prompts in parts: one DecodeJob for each image that has prompts.

        Arguments and errors are those of `predict`.
        """
        model_prompts = self._to_model_frame(prompts)
        embeddings = self._require_embeddings()
        return list(self.model.decode_jobs(embeddings, model_prompts, multimask_output=multimask_output, min_iou=min_iou))

    @torch.inference_mode()
    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M H W"]:
        """Upsample logits to the resolution of an image, H x W, as the released Sam.postprocess_masks; masks exceed 0.

        image_index: index of the image of these prompts; required if several images were set.
        Raises ValueError if no image was set, and without `image_index` if several were.
        """
        return self._resize_of_image(image_index).logits_to_image(mask_logits)

    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Return the masks at the resolution of an image, N x M x H x W bool. Arguments and errors of `logits_to_image`."""
        return self.logits_to_image(mask_logits, image_index) > 0

    @torch.inference_mode()
    def stability_scores(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M"]:
        """Return stability scores at the resolution of an image, 0 to 1: IoU of the masks at logits above 1 and above -1.

        The definition is the paper's (section B). The score is 0 for an empty mask.

        Arguments and errors are those of `logits_to_image`.
        """
        return stability_scores(mask_logits, self._resize_of_image(image_index))

    def masks_to_images(self, mask_logits: Float[Tensor, "N M h w"], image_index: Int[Tensor, " N"]) -> list[Bool[Tensor, "..."]]:
        """Return the masks at the resolution of each image that was set: a list of n x M x H x W bool tensors.

        image_index: that of the prompts. The masks of an image are in the order of its prompts; n may be 0.
        """
        self._require_embeddings()
        index = image_index.to(mask_logits.device)
        return [self.masks_to_image(mask_logits[index == i], i) for i in range(len(self._resizes))]

    def _to_model_frame(self, prompts: Prompts) -> Prompts:
        num_images, index = len(self._require_embeddings()), prompts.image_index
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_images):
            raise ValueError(
                f"image_index ranges from {index.min()} to {index.max()}, but {num_images} images were set: "
                f"expected 0 to {num_images - 1}"
            )
        points = prompts.points_xy.float().clone()
        for i, resize in enumerate(self._resizes):
            # Padding points are scaled too; the prompt encoder ignores their coordinates.
            points[index == i] = resize.points_to_model(points[index == i])
        return replace(prompts, points_xy=points)

    def _resize_of_image(self, image_index: int | None) -> Resize:
        self._require_embeddings()
        if image_index is None and len(self._resizes) > 1:
            raise ValueError(f"{len(self._resizes)} images were set: pass image_index, or use masks_to_images")
        return self._resizes[image_index or 0]

    def _require_embeddings(self) -> Float[Tensor, "B E h w"]:
        if self._embeddings is None:
            raise ValueError("no image was set: call set_image first")
        return self._embeddings

    def _load_cached(self, image: np.ndarray) -> Float[Tensor, "E h w"] | None:
        embedding = self.cache.load(image) if self.cache else None
        return None if embedding is None else embedding.to(self.device)

    def _encode(self, images: Sequence[np.ndarray], resizes: Sequence[Resize]) -> Float[Tensor, "B E h w"]:
        size = self.model.image_size
        scaled = [resize_image(i, *r.scaled_hw, self.resampling) for i, r in zip(images, resizes, strict=True)]
        frames = [pad_to_square(image, size) for image in scaled]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(self.device)
        return self.model.encode_images(pixels, torch.tensor([r.scaled_hw for r in resizes], device=self.device))
