"""The mask decoder (paper, section A; segment_anything/modeling/mask_decoder.py), packed over images.

Output tokens are [IoU, mask 0, mask 1, mask 2, mask 3]: mask 0 answers prompts that are not ambiguous, masks 1 to 3
those that are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sam_train.model.layers import MLP, LayerNorm2d
from sam_train.model.transformer import TwoWayTransformer
from sam_train.structures import Prediction

NUM_MULTIMASK_OUTPUTS = 3


class MaskDecoder(nn.Module):
    """Image embeddings and prompt embeddings to mask logits and IoU scores."""

    def __init__(self, *, dim: int, transformer: TwoWayTransformer, iou_sigmoid: bool = False) -> None:
        super().__init__()
        num_masks = NUM_MULTIMASK_OUTPUTS + 1
        self.transformer = transformer
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, 256, num_masks, 3)
        self.iou_sigmoid = iou_sigmoid

    def forward(
        self,
        image_embeddings: Float[Tensor, "B C h w"],
        image_index: Int[Tensor, " N"],
        image_pe: Float[Tensor, "1 C h w"],
        sparse: Float[Tensor, "N P C"],
        dense: Float[Tensor, "#N C #h #w"],
        multimask_output: bool,
    ) -> Prediction:
        """Three candidate masks for each prompt if `multimask_output`, else one."""
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], 1)
        source = image_embeddings[image_index] + dense
        queries, image = self.transformer(tokens, source.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2))
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(source.shape))
        wanted = range(1, 1 + NUM_MULTIMASK_OUTPUTS) if multimask_output else range(1)
        weights = torch.stack([self.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in wanted], 1)
        mask_logits = torch.einsum("nmc,nchw->nmhw", weights, upscaled)
        iou = self.iou_prediction_head(queries[:, 0])
        iou = iou.sigmoid() if self.iou_sigmoid else iou
        return Prediction(mask_logits=mask_logits, iou_scores=iou[:, wanted.start : wanted.stop])
