"""Predictions of packed prompts on one encoded image or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.geometry import Resampling
from sam_train.inference.argument_checks import check_choice, check_type, invalid
from sam_train.inference.embedding_cache import EmbeddingCache
from sam_train.inference.encoded_images import EncodedImages
from sam_train.inference.image_input import ImageInput
from sam_train.inference.mask_rasterizer import stability_scores
from sam_train.inference.mask_upsampling import downsample_mask, encode_rles, upsample_masks
from sam_train.inference.prompt_arrays import predict_in_groups
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.records import Rle
from sam_train.structures import Prediction, Prompts


class PackedPredictor:
    """Prompted segmentation of any number of images at once, with tensors from prompt to mask.

    `Predictor` adds the interface of the released predictors, which describes one object or the objects of one image.
    Predictions are low-resolution logits, so that only masks that are used are brought to the size of the image.

    Example:

        predictor = load_predictor("model.pt", "auto")
        predictor.set_image_batch([first, second])
        prompts = make_prompts(points_xy=[[320, 240], [80, 60]], image_index=[0, 1])
        best = predictor.predict_prompts(prompts, multimask_output=True).best()  # the candidate of highest predicted IoU
        masks = predictor.masks_to_images(best.mask_logits, prompts.image_index)  # two tensors, 1 x 1 x H x W bool

        # The same clicks with a correction each, and the previous logits as mask prompts:
        prompts = prompts.with_point(torch.tensor([[400.0, 60], [9, 9]]), torch.tensor([0, 0]), best.mask_logits)
        prediction = predictor.predict_prompts(prompts, multimask_output=False)

    Arguments are those of `Predictor`.
    """

    def __init__(self, sam_model: Sam, cache: EmbeddingCache | None = None, *, resampling: Resampling = "area") -> None:
        check_type("sam_model", sam_model, Sam, "load_checkpoint(path) returns one")
        check_choice("resampling", resampling, ("area", "bilinear"))
        if cache is not None and resampling != "area":
            raise ValueError(
                f"an embedding cache holds embeddings of images resized with resampling='area': "
                f"omit the cache with resampling={resampling!r}"
            )
        self.model = sam_model.eval()
        self.cache, self.resampling = cache, resampling
        self._images: EncodedImages | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model and of the predictions."""
        return self.model.pixel_mean.device

    @property
    def images(self) -> EncodedImages:
        """Embeddings and sizes of the images that were set. Raises RuntimeError if there are none."""
        if self._images is None:
            raise RuntimeError("no image was set: call set_image first")
        return self._images

    def set_image(self, image: ImageInput, image_format: str = "RGB") -> None:
        """Encode an image; later calls of `predict` refer to it.

        image: a path, a Pillow image, an H x W x 3 uint8 array, or a uint8 tensor, H x W x 3 or 3 x H x W; of any size.
        image_format: order of the channels of an array or tensor, "RGB" or "BGR". Raises ValueError for anything else.
        """
        self._images = None
        self._images = EncodedImages.encode(self.model, [image], self.cache, self.resampling, image_format)

    def set_image_batch(self, image_list: Sequence[ImageInput]) -> None:
        """Encode B images in one batch, for `predict_batch` and `predict_prompts`.

        image_list: images as `set_image` takes them, RGB. Raises ValueError for an empty list and for anything else.
        """
        if not isinstance(image_list, list | tuple) or not image_list:
            raise invalid("image_list", "a list of at least one image", image_list)
        self._images = None
        self._images = EncodedImages.encode(self.model, image_list, self.cache, self.resampling, "RGB")

    def reset_image(self) -> None:
        """Forget the images that were set."""
        self._images = None

    def get_image_embedding(self) -> Float[Tensor, "B E h w"]:
        """Return the embeddings of the images that were set, B x E x h x w. Raises RuntimeError if no image was set."""
        return self.images.embeddings

    @torch.no_grad()
    def predict_prompts(
        self, prompts: Prompts | Sequence[Prompts], *, multimask_output: bool, min_iou: float | None = None
    ) -> Prediction:
        """Decode N prompts on the images that were set.

        prompts: coordinates in pixels of the image frame, on any device; `make_prompts` builds them from arrays.
            `prompts.image_index` is 0 if one image was set. A list may hold prompts with different numbers of points; those of
            equal length are decoded together, and the result has the order of the list.
        multimask_output: with True, M = 3 candidate masks per prompt, for ambiguous prompts such as a single click; else M = 1.
        min_iou: the logits of prompts none of whose scores reaches it are -inf, which saves their upscaling; None upscales all.

        Returns mask_logits N x M x h x w on the decoder's grid (h = w = a quarter of the model frame's side with 16-pixel
        patches; a mask is where they exceed 0) and iou_scores N x M, the model's estimates of the masks' IoU, about 0 to 1.
        `masks_to_image` and `masks_to_rles` bring the logits to the size of the image.

        Raises ValueError for an `image_index` out of range and other invalid values, RuntimeError if no image was set.
        """
        if isinstance(prompts, Prompts):
            return self.images.decode(self.model, self.images.to_model_frame(prompts), multimask_output, min_iou)
        return predict_in_groups(
            prompts, lambda group: self.predict_prompts(group, multimask_output=multimask_output, min_iou=min_iou)
        )

    @torch.no_grad()
    def decode_jobs(self, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> list[DecodeJob]:
        """Prepare `predict_prompts` for callers that decode in parts: one DecodeJob for each image that has prompts."""
        embeddings, model_prompts = self.images.embeddings, self.images.to_model_frame(prompts)
        return list(self.model.decode_jobs(embeddings, model_prompts, multimask_output=multimask_output, min_iou=min_iou))

    @torch.no_grad()
    def logits_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M H W"]:
        """Upsample logits to the resolution of an image, H x W, as the released Sam.postprocess_masks; masks exceed 0.

        image_index: index of the image of these prompts; required if several images were set.
        Raises RuntimeError if no image was set, and without `image_index` if several were.
        """
        return self.images.resize(image_index).logits_to_image(mask_logits.float())

    @torch.no_grad()
    def masks_to_image(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Bool[Tensor, "N M H W"]:
        """Return the masks at the resolution of an image, N x M x H x W bool. Arguments and errors of `logits_to_image`."""
        return upsample_masks(mask_logits, self.images.resize(image_index))

    @torch.no_grad()
    def masks_to_rles(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> list[list[Rle]]:
        """Return the masks at the resolution of an image as COCO RLEs, N lists of M, without arrays of that size.

        Arguments and errors are those of `logits_to_image`.
        """
        return encode_rles(mask_logits, self.images.resize(image_index))

    @torch.no_grad()
    def stability_scores(self, mask_logits: Float[Tensor, "N M h w"], image_index: int | None = None) -> Float[Tensor, "N M"]:
        """Return stability scores at the resolution of an image, 0 to 1: IoU of the masks at logits above 1 and above -1.

        The definition is the paper's (section B). The score is 0 for an empty mask.

        Arguments and errors are those of `logits_to_image`.
        """
        return stability_scores(mask_logits, self.images.resize(image_index))

    def masks_to_images(self, mask_logits: Float[Tensor, "N M h w"], image_index: Int[Tensor, " N"]) -> list[Bool[Tensor, "..."]]:
        """Return the masks at the resolution of each image that was set: a list of n x M x H x W bool tensors.

        image_index: that of the prompts. The masks of an image are in the order of its prompts; n may be 0.
        """
        index = image_index.to(mask_logits.device)
        return [self.masks_to_image(mask_logits[index == i], i) for i in range(len(self.images))]

    def mask_to_logits(self, mask: np.ndarray, image_index: int | None = None) -> Float[np.ndarray, "1 h w"]:
        """Return a binary mask of an image as a mask prompt, the `mask_input` of `predict`.

        mask: H x W, bool or of the values 0 and 1. image_index: as in `logits_to_image`.

        Raises ValueError for another shape or other values, RuntimeError as `logits_to_image`.
        """
        resize, array = self.images.resize(image_index), np.asarray(mask)
        if array.shape != (resize.height, resize.width) or not np.isin(array, (0, 1)).all():
            values = f" with values {array.min()} to {array.max()}" if array.size else ""
            expected = f"a binary mask of the image's size, {resize.height} x {resize.width}"
            raise invalid("mask", expected, got=f"shape {array.shape} of {array.dtype}{values}")
        return downsample_mask(array.astype(bool), resize, self.model.logits_size)
