"""`set_image` once, which is slow; `predict` often, which is fast. Prompts and masks in the image frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.geometry import Resampling, Resize, pad_to_square, resize_image
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.structures import PointLabel, Prediction, Prompts

Array = np.ndarray | Tensor


class Predictor:
    """Prompted segmentation of the images that were set last, with any number of prompts at once.

    cache: embeddings that need not be computed again; it must be of the checkpoint that `model` was loaded from.
    resampling: how images get to the model's size, as `geometry.resize_image` has it.
    Raises ValueError for a cache with another resampling than "area", of which it would say nothing.
    """

    def __init__(self, model: Sam, cache: EmbeddingCache | None = None, *, resampling: Resampling = "area") -> None:
        if cache is not None and resampling != "area":
            raise ValueError(f"a cache holds embeddings of images resized by area: give none with resampling={resampling!r}")
        self.model = model.eval()
        self.cache, self.resampling = cache, resampling
        self._embeddings: Tensor | None = None
        self._resizes: list[Resize] = []

    @property
    def device(self) -> torch.device:
        """Where the model lies; answers lie there too."""
        return self.model.pixel_mean.device

    @property
    def image_embeddings(self) -> Float[Tensor, "B E h w"]:
        """Of the images that were set. Raises ValueError without one."""
        return self._set()

    def set_image(self, image: np.ndarray) -> None:
        """Encode an H x W x 3 uint8 RGB image. Raises ValueError for any other array."""
        self.set_images([image])

    @torch.inference_mode()
    def set_images(self, images: Sequence[np.ndarray]) -> None:
        """Encode images of any sizes in one batch; prompts name them by `image_index` 0 ... B - 1.

        Raises ValueError for no image and for one that is not H x W x 3 uint8.
        """
        if not images:
            raise ValueError("expected at least one image, got none")
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"expected an H x W x 3 uint8 RGB image, got shape {image.shape} of {image.dtype}")
        resizes = [Resize(image.shape[0], image.shape[1], self.model.image_size) for image in images]
        found = [self._cached(image) for image in images]
        missing = [i for i, embedding in enumerate(found) if embedding is None]
        if missing:
            encoded = self._encode([images[i] for i in missing], [resizes[i] for i in missing])
            for i, embedding in zip(missing, encoded, strict=True):
                # Rounded as it will be read, or a picture would be answered otherwise the second time.
                found[i] = self.cache.save(images[i], embedding).to(self.device) if self.cache else embedding
        self._embeddings, self._resizes = torch.stack([e for e in found if e is not None]), resizes

    @torch.inference_mode()
    def predict(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        """Logits on the decoder's grid and IoU scores for N prompts of the images that were set.

        `prompts.points_xy` are image-frame pixels, `prompts.image_index` is 0 if there is one image. Raises ValueError
        without an image, and for a prompt of an image that was not set. `min_iou` as in `Sam.decode`.
        """
        in_model_frame = self._in_model_frame(prompts)
        return self.model.decode(self._set(), in_model_frame, multimask_output=multimask_output, min_iou=min_iou)

    @torch.inference_mode()
    def decode_jobs(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> list[DecodeJob]:
        """`predict` for callers that need not have all answers at once: for each image that has prompts, what answers them."""
        in_model_frame = self._in_model_frame(prompts)
        return list(self.model.decode_jobs(self._set(), in_model_frame, multimask_output=multimask_output, min_iou=min_iou))

    def _in_model_frame(self, prompts: Prompts) -> Prompts:
        num_images, index = len(self._set()), prompts.image_index
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_images):
            raise ValueError(f"image_index goes from {index.min()} to {index.max()}, and {num_images} images were set")
        points = prompts.points_xy.float().clone()
        for i, resize in enumerate(self._resizes):
            # The padding point has no place, so scaling it changes nothing.
            points[index == i] = resize.points_to_model(points[index == i])
        return replace(prompts, points_xy=points)

    @torch.inference_mode()
    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"], image: int | None = None) -> Float[Tensor, "N M H W"]:
        """Logits at the resolution of an image; a mask is where they are above 0.

        image: whose prompts these are; needed when several images were set. Raises ValueError without it then.
        """
        self._set()
        if image is None and len(self._resizes) > 1:
            raise ValueError(f"{len(self._resizes)} images were set: say which by image=, or take masks_by_image")
        return self._resizes[image or 0].logits_to_image(mask_logits)

    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Masks at the resolution of an image."""
        return self.logits_to_image(mask_logits, image) > 0

    def masks_to_images(self, mask_logits: Float[Tensor, "N M h w"], image_index: Int[Tensor, " N"]) -> list[Bool[Tensor, "..."]]:
        """For each image that was set its prompts' masks (n M H W, in the order of the prompts) at its resolution."""
        self._set()
        index = image_index.to(mask_logits.device)
        return [self.masks_to_image(mask_logits[index == i], i) for i in range(len(self._resizes))]

    def _set(self) -> Float[Tensor, "B E h w"]:
        if self._embeddings is None:
            raise ValueError("no image: call set_image first")
        return self._embeddings

    def _cached(self, image: np.ndarray) -> Float[Tensor, "E h w"] | None:
        embedding = self.cache.load(image) if self.cache else None
        return None if embedding is None else embedding.to(self.device)

    def _encode(self, images: Sequence[np.ndarray], resizes: Sequence[Resize]) -> Float[Tensor, "B E h w"]:
        size = self.model.image_size
        scaled = [resize_image(i, *r.scaled_hw, self.resampling) for i, r in zip(images, resizes, strict=True)]
        frames = [pad_to_square(image, size) for image in scaled]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(self.device)
        return self.model.encode_images(pixels, torch.tensor([r.scaled_hw for r in resizes], device=self.device))


def make_prompts(
    *,
    points_xy: Array | None = None,
    point_labels: Array | None = None,
    boxes_xyxy: Array | None = None,
    mask_logits: Array | None = None,
    text_embeddings: Array | None = None,
    image_index: Array | None = None,
    device: torch.device | str = "cpu",
) -> Prompts:
    """`Prompts` from arrays of NumPy or tensors: N points, boxes or words, or some of them together, and the last answers.

    points_xy: N 2 for a point each or N P 2; point_labels: of the same N or N P, foreground if not given; boxes_xyxy: N 4;
    mask_logits: N 1 h w; text_embeddings: N E, of the text encoder that the model was trained with; image_index: N, image 0 if
    not given; device: the predictor's.
    Raises ValueError without points, boxes and words, and when their numbers differ.
    """
    if points_xy is None and boxes_xyxy is None and text_embeddings is None:
        wanted = "points_xy, boxes_xyxy or text_embeddings"
        raise ValueError(f"a prompt needs {wanted} (a mask alone says nothing about which object)")
    given = {"points_xy": points_xy, "point_labels": point_labels, "boxes_xyxy": boxes_xyxy}
    given |= {"mask_logits": mask_logits, "text_embeddings": text_embeddings, "image_index": image_index}
    tensors = {name: torch.as_tensor(array, device=device) for name, array in given.items() if array is not None}
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"one row a prompt in every part of it, got {lengths}")
    num = next(iter(lengths.values()))
    index = tensors.get("image_index", torch.zeros(num, device=device)).long()
    points = tensors.get("points_xy", torch.zeros(num, 0, 2, device=device)).float()
    points = points[:, None] if points.ndim == 2 else points
    labels = tensors.get("point_labels", torch.full(points.shape[:2], PointLabel.FOREGROUND, device=device)).long()
    labels = labels[:, None] if labels.ndim == 1 else labels
    prompts = _with_boxes(index, points, labels, tensors.get("boxes_xyxy"))
    prompts = replace(prompts, text_embeddings=tensors["text_embeddings"].float()) if "text_embeddings" in tensors else prompts
    return prompts.with_mask(tensors["mask_logits"].float()) if "mask_logits" in tensors else prompts


def _with_boxes(
    index: Int[Tensor, " N"],
    points: Float[Tensor, "N P 2"],
    labels: Int[Tensor, "N P"],
    boxes: Tensor | None,
) -> Prompts:
    if boxes is None:
        return Prompts.from_points(index, points, labels)
    prompts = Prompts.from_boxes(index, boxes.float())
    for point in range(points.shape[1]):
        prompts = prompts.with_point(points[:, point], labels[:, point], None)
    return prompts


def click_prompts(points_xy: Float[Tensor, "N 2"]) -> Prompts:
    """One foreground click each, on the image that was set."""
    return make_prompts(points_xy=points_xy, device=points_xy.device)
