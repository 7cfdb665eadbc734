"""Segment Anything: an image is encoded once, prompts are decoded often."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from sam_train.model.image_encoder import ImageEncoder
from sam_train.model.mask_decoder import Decoding, MaskDecoder
from sam_train.model.prompt_encoder import PromptEncoder
from sam_train.model.tiny_vit import TinyViT
from sam_train.structures import Prediction, Prompts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(nn.Module):
    """The three parts. State-dict keys are those of the released checkpoints."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_encoder: ImageEncoder | TinyViT, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = image_encoder, prompt_encoder, mask_decoder
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).reshape(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """Side of the model frame in pixels."""
        return self.image_encoder.image_size

    @property
    def logits_size(self) -> int:
        """Side of the decoder's grid, four cells for each image token."""
        return 4 * self.prompt_encoder.grid_size

    def encode_images(self, images: UInt8[Tensor, "B 3 H W"], sizes_hw: Int[Tensor, "B 2"]) -> Float[Tensor, "B E h w"]:
        """RGB in [0, 255], model frame, to image embeddings of E = C channels, or 4 C with the encoder's details.

        What lies outside `sizes_hw` is padding: it is zero *after* normalisation, as released.
        """
        x = (images - self.pixel_mean) / self.pixel_std
        rows = torch.arange(x.shape[2], device=x.device) < sizes_hw[:, :1]
        columns = torch.arange(x.shape[3], device=x.device) < sizes_hw[:, 1:]
        return self.image_encoder(x * (rows[:, None, :, None] & columns[:, None, None, :]))

    def decode(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        *,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Prediction:
        """Masks for prompts over any of the B images (model frame). Differentiable, any number per image.

        min_iou: for callers that want no mask below it. Prompts none of whose scores reach it get logits of -inf, for less
        than half the work.
        """
        sparse, dense = self.prompt_encoder(prompts)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder(image_embeddings, prompts.image_index, positions, sparse, dense, multimask_output, min_iou)

    def decodings(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        prompts: Prompts,
        *,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Iterator[Decoding]:
        """`decode` for callers that need not have all answers at once: for each image that has prompts, what answers them."""
        sparse, dense = self.prompt_encoder(prompts)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder.decodings(
            image_embeddings, prompts.image_index, positions, sparse, dense, multimask_output, min_iou
        )
