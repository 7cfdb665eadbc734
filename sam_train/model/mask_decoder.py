"""The mask decoder (paper, section A; segment_anything/modeling/mask_decoder.py), packed over images.

Output tokens are [IoU, mask 0, mask 1, mask 2, mask 3]: mask 0 answers prompts that are not ambiguous, masks 1 to 3
those that are.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.layers import MLP, LayerNorm2d
from sam_train.model.transformer import TwoWayTransformer
from sam_train.structures import Prediction

NUM_MULTIMASK_OUTPUTS = 3

# Shared out over the channels of the upscaled map, whose mean is about 0.17 at the start: logits of about -2.4.
PRIOR_LOGIT = -14.0


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
        self._init_outputs(upscaled_dim=dim // 8)

    def _init_outputs(self, *, upscaled_dim: int) -> None:
        """Start where a model that knows nothing should: few pixels are the object, and its own IoU is near zero.

        Starting at "half of all pixels", the first steps push everything down so hard that the decoder no longer depends
        on its prompt; and an IoU head that starts out wrong by more than 1 has most of the gradient. Either costs
        hundreds of steps. Released weights overwrite this.
        """
        for upscale in (self.output_upscaling[0], self.output_upscaling[3]):
            nn.init.normal_(upscale.weight, std=len(upscale.weight) ** -0.5)  # type: ignore[arg-type]
        for mlp in self.output_hypernetworks_mlps:
            cast(MLP, mlp).init_last(gain=0.3, bias=PRIOR_LOGIT / upscaled_dim)
        self.iou_prediction_head.init_last(gain=0.02, bias=0.0)

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
        source = image_embeddings[image_index].permute(0, 2, 3, 1) + dense.permute(0, 2, 3, 1)
        queries, image = self.transformer(tokens, source.flatten(1, 2), image_pe[0].flatten(1).T)
        wanted = range(1, 1 + NUM_MULTIMASK_OUTPUTS) if multimask_output else range(1)
        weights = torch.stack([self.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in wanted], 1)
        mask_logits = self._mask_logits(image.unflatten(1, source.shape[1:3]), weights)
        iou = self.iou_prediction_head(queries[:, 0])
        iou = iou.sigmoid() if self.iou_sigmoid else iou
        return Prediction(mask_logits=mask_logits, iou_scores=iou[:, wanted.start : wanted.stop])

    def _mask_logits(self, image: Float[Tensor, "N h w C"], weights: Float[Tensor, "N M D"]) -> Float[Tensor, "N M 4*h 4*w"]:
        """Upscale four times and take the product with the mask weights.

        A transposed convolution with kernel and stride 2 is one linear map a pixel to its 2 x 2 children. Done so, channels
        stay last, norm and activation run over contiguous memory, and only the M products are put in image order.
        """
        first, norm, _, second, _ = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(second, nn.ConvTranspose2d)
        x = _children(image, first)
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_children(x, second))
        (n, h, w), m = image.shape[:3], weights.shape[1]
        products = weights @ x.flatten(1, -2).transpose(1, 2)  # N M (h w 2 2 2 2): y x of each of three scales
        return products.view(n, m, h, w, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(n, m, 4 * h, 4 * w)


def _children(x: Float[Tensor, "... i"], conv: nn.ConvTranspose2d) -> Float[Tensor, "... 2 2 o"]:
    """A 2 x 2, stride 2 transposed convolution with channels last, the children as two new axes (y, x)."""
    weight = conv.weight.permute(0, 2, 3, 1)  # i 2 2 o
    return (x @ weight.flatten(1)).unflatten(-1, weight.shape[1:]) + conv.bias
