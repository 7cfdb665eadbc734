"""The Segment Anything Model: encode an image once, decode any number of prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from sam_train.model.image_encoder import ImageEncoder
from sam_train.model.mask_decoder import DecodeJob, MaskDecoder
from sam_train.model.prompt_encoder import PromptEncoder
from sam_train.model.tiny_vit import TinyViT
from sam_train.structures import Prediction, Prompts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
STD_EPSILON = 4.0
"""Added to an image's standard deviation, on a scale of 0 to 255."""


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder. State-dict keys are those of the released checkpoints.

    pixel_statistics: mean and standard deviation that normalise pixels before the encoder: "released", those of each channel
        over ImageNet (segment_anything/modeling/sam.py); or "image", one mean and one standard deviation over all pixels and
        channels of each image, which makes dim and bright exposures of a microscope alike.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: ImageEncoder | TinyViT,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        pixel_statistics: str = "released",
    ) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = image_encoder, prompt_encoder, mask_decoder
        self.pixel_statistics = pixel_statistics
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).reshape(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.pixel_mean.device

    @property
    def image_size(self) -> int:
        """Side of the model frame in pixels."""
        return self.image_encoder.image_size

    @property
    def logits_size(self) -> int:
        """Side of the low-resolution mask logits, four cells per image token."""
        return 4 * self.prompt_encoder.grid_size

    @property
    def has_high_res_features(self) -> bool:
        """True if the image embeddings also carry the features of the finer grids of a convolutional stem."""
        return getattr(self.image_encoder, "details", None) is not None

    @property
    def image_embedding_dim(self) -> int:
        """Number of channels of the image embeddings: the decoder's C, or 4 C with `high_res_features`."""
        return self.prompt_encoder.no_mask_embed.embedding_dim * (4 if self.has_high_res_features else 1)

    def encode_images(self, images: UInt8[Tensor, "B 3 H W"], sizes_hw: Int[Tensor, "B 2"]) -> Float[Tensor, "B E h w"]:
        """Encode RGB images (0 to 255, model frame) as image embeddings of E = `image_embedding_dim` channels.

        sizes_hw: height and width of each image inside the model frame. The rest is padding, which is zero *after*
            normalization, as in the released code.
        """
        rows = torch.arange(images.shape[2], device=images.device) < sizes_hw[:, :1]
        columns = torch.arange(images.shape[3], device=images.device) < sizes_hw[:, 1:]
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        if self.pixel_statistics == "image":
            x = _standardize(images.to(torch.promote_types(self.pixel_mean.dtype, torch.float32)), inside).to(
                self.pixel_mean.dtype
            )
        else:
            x = (images - self.pixel_mean) / self.pixel_std
        return self.image_encoder(x * inside)

    def decode(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        *,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Prediction:
        """Decode prompts (model frame) over any of the B images, any number per image. Differentiable.

        multimask_output: predict three candidate masks for each prompt, else one.
        min_iou: prompts none of whose scores reach it get logits of -inf, for less than half the computation.
        """
        sparse, dense = self.prompt_encoder(prompts)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder(image_embeddings, prompts.image_index, positions, sparse, dense, multimask_output, min_iou)

    def decode_jobs(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        *,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Iterator[DecodeJob]:
        """Yield a `DecodeJob` for each image that has prompts, to decode as needed instead of all at once."""
        sparse, dense = self.prompt_encoder(prompts)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder.decode_jobs(
            image_embeddings, prompts.image_index, positions, sparse, dense, multimask_output, min_iou
        )


def _standardize(x: Float[Tensor, "B 3 H W"], inside: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Normalise each image by the mean and standard deviation of its unpadded pixels; noise in a uniform image stays small."""
    count = 3 * inside.sum((1, 2, 3), keepdim=True)
    centred = (x - (x * inside).sum((1, 2, 3), keepdim=True) / count) * inside
    return centred / ((centred.square().sum((1, 2, 3), keepdim=True) / count).sqrt() + STD_EPSILON)
