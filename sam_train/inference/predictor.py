"""Prompted segmentation: `set_image` once, which is slow; `predict` many times, which is fast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_train.geometry import Resize, pad_to_square
from sam_train.inference.argument_checks import check_flag, invalid
from sam_train.inference.coordinate_transform import ResizeLongestSide
from sam_train.inference.encoded_images import EncodedImages
from sam_train.inference.packed_predictor import PackedPredictor
from sam_train.inference.prompt_arrays import Array
from sam_train.inference.released_prompts import per_image, released_prompts
from sam_train.structures import Prediction

Predicted = tuple[np.ndarray, np.ndarray, np.ndarray]


class Predictor(PackedPredictor):
    """Prompted segmentation of one image or several.

    Methods, arguments, defaults and results are those of segment_anything's SamPredictor and SAM 2's SAM2ImagePredictor
    (docs/api.md has the differences). `PackedPredictor` has the methods for many images and objects at once.

    Prompts and masks are in the image frame, whose unit is the pixel of the image as it was passed.

    Example:

        predictor = load_predictor("model.pt", "auto")
        predictor.set_image("photo.jpg")
        masks, scores, logits = predictor.predict(point_coords=[[320, 240]], point_labels=[1])  # 3 x H x W, 3, 3 x 256 x 256
        best = scores.argmax()

        # The same click with a correction, and the previous logits as mask prompt:
        masks, scores, logits = predictor.predict(
            [[320, 240], [400, 60]], [1, 0], mask_input=logits[best : best + 1], multimask_output=False
        )
        masks, scores, _ = predictor.predict(box=[[10, 20, 200, 120], [30, 30, 90, 90]])         # 2 x 3 x H x W, 2 x 3

    sam_model: set to eval mode; its device computes.
    cache: stores embeddings on disk so that an image is encoded only once; it must be that of the model's checkpoint.
    resampling: interpolation with which images are resized to the model frame (`geometry.resize_image`); "bilinear" is that of
        the released predictors.
    Raises ValueError for another type or name, and for a cache together with a resampling other than "area", which the cache
    does not record.
    """

    @property
    def transform(self) -> ResizeLongestSide:
        """Conversion of images, points and boxes to the model frame, for `predict_torch`."""
        return ResizeLongestSide(self.model.image_size, self.resampling)

    @property
    def is_image_set(self) -> bool:
        """True if an image, or several, are set."""
        return self._images is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image that was set. Raises RuntimeError unless exactly one was."""
        resize = self.images.resize(None)
        return resize.height, resize.width

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the image inside the model frame. Raises RuntimeError unless exactly one image was set."""
        return self.images.resize(None).scaled_hw

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode an image that `transform` has resized to the model frame, 1 x 3 x h x w RGB with values 0 to 255.

        original_image_size: height and width before resizing. Raises ValueError for another shape.
        """
        self.reset_image()
        height, width = original_image_size
        resize, shape = Resize(height, width, self.model.image_size), tuple(getattr(transformed_image, "shape", ()))
        if shape != (1, 3, *resize.scaled_hw):
            expected = f"a tensor of shape {(1, 3, *resize.scaled_hw)} for an image of {height} x {width}"
            raise invalid("transformed_image", expected, shape)
        pixels = transformed_image[0].permute(1, 2, 0).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        self._images = EncodedImages.encode_frames(self.model, [pad_to_square(pixels, resize.size)], [resize])

    def reset_predictor(self) -> None:
        """Forget the images that were set, under the name that SAM 2 gives it."""
        self.reset_image()

    @property
    def features(self) -> Float[Tensor, "B E h w"]:
        """Embeddings as `get_image_embedding` returns them."""
        return self.get_image_embedding()

    def predict(
        self,
        point_coords: Array | None = None,
        point_labels: Array | None = None,
        box: Array | None = None,
        mask_input: Array | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> Predicted:
        """Return masks, scores and low-resolution logits of an object, or of B objects, in the image that was set.

        point_coords: P x 2, x and y of P points on one object, in pixels; or B x P x 2.
        point_labels: P or B x P, 1 for foreground and 0 for background.
        box: left, top, right, bottom in pixels, 4 or B x 4.
        mask_input: logits of an earlier prediction, 1 x h x w, or B x 1 x h x w; `mask_to_logits` makes them from a mask.
        multimask_output: with True, C = 3 candidate masks per object, for ambiguous prompts such as one click; else C = 1.
        return_logits: return logits in place of masks, whose threshold is 0.
        normalize_coords: with False, coordinates are fractions of the width and the height of the image, 0 to 1.

        Returns NumPy arrays: masks C x H x W bool (float32 logits with `return_logits`), estimates of their IoU C, about 0 to
        1, and logits C x h x w on the decoder's grid; each with a leading axis B if B > 1.

        Raises ValueError, with the argument's name, for other shapes and values; RuntimeError unless one image was set.
        """
        self.images.resize(None)
        prompt = (point_coords, point_labels, box, mask_input)
        return self._predict_image(0, prompt, multimask_output, return_logits, normalize_coords)

    def predict_batch(
        self,
        point_coords_batch: Sequence[Array | None] | None = None,
        point_labels_batch: Sequence[Array | None] | None = None,
        box_batch: Sequence[Array | None] | None = None,
        mask_input_batch: Sequence[Array | None] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Run `predict` on each image that was set: lists with one entry per image, as arguments and as results.

        Raises ValueError for lists of another length, and what `predict` raises.
        """
        num = len(self.images)
        parts = {
            "point_coords_batch": point_coords_batch,
            "point_labels_batch": point_labels_batch,
            "box_batch": box_batch,
            "mask_input_batch": mask_input_batch,
        }
        columns = [per_image(name, values, num) for name, values in parts.items()]
        results = [
            self._predict_image(i, prompt, multimask_output, return_logits, normalize_coords)
            for i, prompt in enumerate(zip(*columns, strict=True))
        ]
        masks, scores, logits = (list(column) for column in zip(*results, strict=True))
        return masks, scores, logits

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks, scores and low-resolution logits of B objects as tensors on `device`.

        point_coords (B x P x 2) and boxes (B x 4) are in the model frame: `transform` converts them. Other arguments are those
        of `predict`. Returns B x C x H x W, B x C and B x C x h x w.

        Raises ValueError, with the argument's name, for other shapes and values; RuntimeError unless one image was set.
        """
        check_flag("return_logits", return_logits)
        images, prompts = self.images, released_prompts(point_coords, point_labels, boxes, mask_input, box_name="boxes")
        images.resize(None)
        prediction = images.decode(self.model, prompts, multimask_output, None)
        return self._at_image_size(prediction, return_logits, 0), prediction.iou_scores, prediction.mask_logits

    @torch.no_grad()
    def _predict_image(
        self,
        index: int,
        prompt: Sequence[Array | None],
        multimask_output: bool,
        return_logits: bool,
        normalize_coords: bool,
    ) -> Predicted:
        """Return what `predict` returns, for the image with this index."""
        check_flag("return_logits", return_logits)
        check_flag("normalize_coords", normalize_coords)
        resize = self.images.resize(index)
        scale_xy = (1.0, 1.0) if normalize_coords else (float(resize.width), float(resize.height))
        prompts = released_prompts(*prompt, scale_xy=scale_xy, image_index=index)
        prediction = self.predict_prompts(prompts, multimask_output=multimask_output)
        masks = self._at_image_size(prediction, return_logits, index)
        parts = masks, prediction.iou_scores.float(), prediction.mask_logits.float()
        first, second, third = ((part[0] if len(part) == 1 else part).cpu().numpy() for part in parts)
        return first, second, third

    def _at_image_size(self, prediction: Prediction, return_logits: bool, index: int) -> Tensor:
        to_image = self.logits_to_image if return_logits else self.masks_to_image
        return to_image(prediction.mask_logits, index)
