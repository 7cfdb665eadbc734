"""The mask decoder (paper, section A; segment_anything/modeling/mask_decoder.py), packed over images.

Output tokens are [IoU, mask 0, mask 1, mask 2, mask 3]: mask 0 answers prompts that are not ambiguous, masks 1 to 3
those that are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sam_train.model.chunk_sizes import chunk_sizes_for
from sam_train.model.layers import MLP, LayerNorm2d
from sam_train.model.low_rank_image_tokens import DenseImageTokens, LowRankImageTokens, SharedImageTokens, StreamProjection
from sam_train.model.prompt_encoder import DensePromptEmbedding
from sam_train.model.transformer import ImageProjections, TwoWayTransformer
from sam_train.structures import Prediction

NUM_MULTIMASK_OUTPUTS = 3

# Shared out over the channels of the upscaled map, whose mean is about 0.17 at the start: logits of about -2.4.
PRIOR_LOGIT = -14.0

# Of IoU scores that pass a sigmoid, at the start: 0.05.
PRIOR_IOU_LOGIT = -3.0

# The image stream of a prompt stays of low rank while its rank is below this share of the channels (see image_stream).
# What it shares between prompts has to be made first, which pays for so many prompts of an image.
MAX_LOW_RANK_SHARE = 0.7
MIN_PROMPTS_FOR_LOW_RANK = 8

# glibc hands memory back once twice the largest block that was ever freed lies idle, and every page that comes again is a
# fault: a quarter of a decoding. After one block of just under 32 MiB, its limit, it keeps 64 MiB. This one is never touched.
torch.empty(31 << 20, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _PreparedImage:
    """An image as the decoder uses it: seen by the transformer, under the first upscaling, and finer details to add to it."""

    side: ImageProjections
    up: StreamProjection
    details: Float[Tensor, "L E"] | None


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """The prompts of one image, of which all that depends on the image alone is done. Any of them, in any order and thread."""

    rows: Int[Tensor, " n"]
    """Which of all the prompts they are."""
    chunk_size: int
    """How many to answer together: what the caches hold, or enough to keep a GPU busy."""
    decode: Callable[[Int[Tensor, " k"]], tuple[Float[Tensor, "k M H W"], Float[Tensor, "k M"]]]
    """Mask logits and IoU scores of some of the rows."""


class MaskDecoder(nn.Module):
    """Image embeddings and prompt embeddings to mask logits and IoU scores.

    iou_sigmoid: IoU scores pass a sigmoid, as in SAM 2; SAM's own may leave [0, 1].
    """

    def __init__(self, *, dim: int, transformer: TwoWayTransformer, iou_sigmoid: bool = False) -> None:
        super().__init__()
        self.iou_sigmoid = iou_sigmoid
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
            cast(MLP, mlp).init_last_layer(gain=0.3, bias=PRIOR_LOGIT / upscaled_dim)
        self.iou_prediction_head.init_last_layer(gain=0.02, bias=PRIOR_IOU_LOGIT if self.iou_sigmoid else 0.0)

    def forward(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        image_index: Int[Tensor, " N"],
        image_pe: Float[Tensor, "C h w"],
        sparse: Float[Tensor, "N P C"],
        dense: DensePromptEmbedding,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Prediction:
        """Three candidate masks for each prompt if `multimask_output`, else one.

        min_iou: prompts none of whose scores reach it are not upscaled: their logits are -inf. None upscales all.
        Image embeddings have as many channels as the prompts' or, with an encoder's `details`, four times as many.
        Image by image, so the answers to the prompts of an image do not depend on what else is in the batch.
        """
        _, h, w = image_pe.shape
        num_masks = NUM_MULTIMASK_OUTPUTS if multimask_output else 1
        answers, order = [], []
        together = Prediction(
            mask_logits=sparse.new_empty(len(sparse), num_masks, 4 * h, 4 * w),
            iou_scores=sparse.new_empty(len(sparse), num_masks),
        )
        for decoding in self.decode_jobs(image_embeddings, image_index, image_pe, sparse, dense, multimask_output, min_iou):
            chunks = decoding.rows.split(decoding.chunk_size)
            for rows in chunks:
                decode = partial(decoding.decode, rows)
                if not torch.is_grad_enabled():
                    for into, part in zip((together.mask_logits, together.iou_scores), decode(), strict=True):
                        into.index_copy_(0, rows, part.to(into.dtype))
                    continue
                # What does not fit in the cache is made again in the backward pass sooner than it is fetched back.
                answers.append(checkpoint(decode, use_reentrant=False) if len(chunks) > 1 else decode())
                order.append(rows)
        if not answers:
            return together
        mask_logits, iou_scores = (torch.cat(parts)[torch.cat(order).argsort()] for parts in zip(*answers, strict=True))
        return Prediction(mask_logits=mask_logits, iou_scores=iou_scores)

    def decode_jobs(
        self,
        image_embeddings: Float[Tensor, "B E h w"],
        image_index: Int[Tensor, " N"],
        image_pe: Float[Tensor, "C h w"],
        sparse: Float[Tensor, "N P C"],
        dense: DensePromptEmbedding,
        multimask_output: bool,
        min_iou: float | None = None,
    ) -> Iterator[DecodeJob]:
        """As `forward`, for callers that need not have all answers at once: image by image, those that have prompts."""
        hw, num_masks = (image_pe.shape[1], image_pe.shape[2]), NUM_MULTIMASK_OUTPUTS if multimask_output else 1
        tokens = self._tokens(sparse)
        narrow = self.transformer.rank(tokens.shape[1]) < MAX_LOW_RANK_SHARE * image_pe.shape[0]
        positions = self.transformer.positions(image_pe.flatten(1))
        chunk_size = max(1, chunk_sizes_for(image_pe.device).image_tokens // image_pe.numel())
        for i, own in _rows_by_image(image_index, len(image_embeddings)):
            low_rank = narrow and len(own) >= MIN_PROMPTS_FOR_LOW_RANK
            image = self._prepare(image_embeddings[i], dense, positions, low_rank)
            stream = LowRankImageTokens if low_rank else DenseImageTokens
            yield DecodeJob(own, chunk_size, partial(self._answer, image, tokens, stream, dense, hw, num_masks, min_iou))

    def _tokens(self, sparse: Float[Tensor, "N P C"]) -> Float[Tensor, "N T C"]:
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], 1)

    def _prepare(
        self, image: Float[Tensor, "E h w"], dense: DensePromptEmbedding, positions: list[Float[Tensor, "I L"]], low_rank: bool
    ) -> _PreparedImage:
        """All that depends on the image alone, up to the first upscaling."""
        dim = len(dense.constant)
        if len(image) not in (dim, 4 * dim):
            raise ValueError(f"image embeddings have {len(image)} channels, expected {dim}, or {4 * dim} with details")
        shared = SharedImageTokens(image[:dim].flatten(1) + dense.constant[:, None], dense.maps, dense=not low_rank)
        side = self.transformer.prepare(shared, positions)
        up = shared.project(self._upscaling()[0].weight.permute(2, 3, 1, 0).flatten(0, 2), 1)
        return _PreparedImage(side, up, image[dim:].flatten(1).T.contiguous() if len(image) > dim else None)

    def _answer(
        self,
        image: _PreparedImage,
        all_tokens: Float[Tensor, "N T C"],
        stream_type: type[LowRankImageTokens],
        dense: DensePromptEmbedding,
        grid_hw: tuple[int, int],
        num_masks: int,
        min_iou: float | None,
        rows: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "n M H W"], Float[Tensor, "n M"]]:
        """The answers to some prompts of one image."""
        stream = stream_type(dense.select_features(rows))
        tokens = self.transformer(all_tokens[rows], stream, image.side)
        wanted = range(1) if num_masks == 1 else range(1, 1 + num_masks)
        iou = self.iou_prediction_head(tokens[:, 0])[:, wanted.start : wanted.stop]
        iou = iou.sigmoid() if self.iou_sigmoid else iou
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in wanted], 1)
        if min_iou is None:
            return self._mask_logits(stream, image, weights, grid_hw), iou
        passing = (iou >= min_iou).any(1).nonzero()[:, 0]
        if len(passing) == len(iou):
            return self._mask_logits(stream, image, weights, grid_hw), iou
        logits = weights.new_full((len(tokens), num_masks, 4 * grid_hw[0], 4 * grid_hw[1]), -torch.inf)
        if len(passing):
            logits[passing] = self._mask_logits(stream.at(passing), image, weights[passing], grid_hw).to(logits.dtype)
        return logits, iou

    def _mask_logits(
        self, stream: LowRankImageTokens, image: _PreparedImage, weights: Float[Tensor, "N M D"], grid_hw: tuple[int, int]
    ) -> Float[Tensor, "N M H W"]:
        """Upscale four times, a part that fits the cache at a time, and take the product with the mask weights."""
        bias = self._upscaling()[0].bias
        assert bias is not None
        num_tokens = max(1, chunk_sizes_for(weights.device).upscaling // (len(weights) * image.up.weight.shape[1]))
        details = repeat(None) if image.details is None else image.details.split(num_tokens)
        parts = zip(stream.outputs(image.up, bias.repeat(4), num_tokens), details, strict=False)
        return _grid(torch.cat([weights @ self._upscale(x, more).mT for x, more in parts], 2), grid_hw)

    def _upscale(self, children: Float[Tensor, "N l C"], details: Float[Tensor, "l E"] | None) -> Float[Tensor, "N l*16 D"]:
        """From the first transposed convolution to the last activation, the 4 x 4 pixels of an image token in turn.

        A transposed convolution with kernel and stride 2 is one linear map a pixel to its 2 x 2 children. Done so, channels
        stay last, and norms and activations run over contiguous memory.
        """
        _, norm, second = self._upscaling()
        half, quarter = (None, None) if details is None else details.tensor_split([children.shape[2]], 1)
        x = (children if half is None else children + half).unflatten(2, (4, -1))
        x = _children(F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)), second)
        x = F.gelu(x if quarter is None else x + quarter.unflatten(1, x.shape[2:]))
        return x.flatten(1, -2)

    def _upscaling(self) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
        return cast(
            "tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]", tuple(self.output_upscaling[i] for i in (0, 1, 3))
        )


def _rows_by_image(image_index: Int[Tensor, " N"], num_images: int) -> Iterator[tuple[int, Int[Tensor, " n"]]]:
    """Each image that has prompts, and which these are. Of a single image all are: nothing to ask a device for."""
    if num_images == 1:
        if len(image_index):
            yield 0, torch.arange(len(image_index), device=image_index.device)
        return
    for i in image_index.unique().tolist():
        yield i, (image_index == i).nonzero()[:, 0]


def _grid(products: Float[Tensor, "N M _"], grid_hw: tuple[int, int]) -> Float[Tensor, "N M H W"]:
    """Put cells, children (y, x) and grandchildren (y, x) in image order.

    Neighbours in a row are moved as one complex number: a quarter of the time, and torch has no other pair.
    """
    n, m, (h, w) = *products.shape[:2], grid_hw
    if products.dtype == torch.bfloat16:  # there is no complex bfloat16
        products = products.float()
    pairs = torch.view_as_complex(products.view(n, m, h, w, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5)
    return torch.view_as_real(pairs.contiguous()).view(n, m, 4 * h, 4 * w)


def _children(x: Float[Tensor, "... i"], conv: nn.ConvTranspose2d) -> Float[Tensor, "... 2 2 o"]:
    """A 2 x 2, stride 2 transposed convolution with channels last, the children as two new axes (y, x)."""
    weight = conv.weight.permute(0, 2, 3, 1)  # i 2 2 o
    assert conv.bias is not None
    flat = torch.addmm(conv.bias.repeat(4), x.flatten(0, -2), weight.flatten(1))
    return flat.view(*x.shape[:-1], *weight.shape[1:])
