"""The mask decoder (paper, section A; segment_anything/modeling/mask_decoder.py), packed over images.

Output tokens are [IoU, mask 0, mask 1, mask 2, mask 3]: mask 0 is for unambiguous prompts, masks 1 to 3 for ambiguous ones.
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
from sam_train.model.low_rank_image_tokens import DenseImageTokens, ImageTokenProjection, LowRankImageTokens, SharedImageTokens
from sam_train.model.mask_statistics import MaskStatisticsHead
from sam_train.model.prompt_encoder import DensePromptEmbedding
from sam_train.model.transformer import ImageProjections, TwoWayTransformer
from sam_train.structures import Prediction

NUM_MULTIMASK_OUTPUTS = 3

INITIAL_MASK_LOGIT = -14.0
"""Sum of the initial biases of a hypernetwork over the upscaled channels, whose mean is about 0.17 at the start: it gives mask
logits of about -2.4."""

INITIAL_IOU_LOGIT = -3.0
"""Initial bias of IoU scores with a sigmoid: a score of 0.05."""

MAX_LOW_RANK_SHARE = 0.7
"""Image tokens stay of low rank while their rank is below this share of the channels (see `low_rank_image_tokens`)."""
MIN_PROMPTS_FOR_LOW_RANK = 8
"""Number of prompts of an image from which computing the shared part of low-rank image tokens pays off."""

# glibc returns memory to the system once twice the largest block ever freed is idle, and every page allocated again causes a
# page fault: a quarter of the decoding time. After one block of just under 32 MiB, its limit, it keeps 64 MiB. This block is
# never written to.
torch.empty(31 << 20, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _PreparedImage:
    """All results of the decoder that depend only on the image."""

    projections: ImageProjections
    """Image tokens projected for the transformer."""
    upscaled: ImageTokenProjection
    """Image tokens projected by the first upscaling layer."""
    high_res_features: Float[Tensor, "L E"] | None
    """High-resolution features to add while upscaling, a row per image token."""


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """The prompts of one image, ready to decode: everything that depends only on the image is already computed."""

    rows: Int[Tensor, " n"]
    """Indices of these prompts among all prompts."""
    chunk_size: int
    """Number of prompts to decode together: what the caches hold, or enough to keep a GPU busy."""
    decode: Callable[[Int[Tensor, " k"]], tuple[Float[Tensor, "k M H W"], Float[Tensor, "k M"]]]
    """Return mask logits and IoU scores of any of `rows`. May be called in any order and from any thread."""


class MaskDecoder(nn.Module):
    """Decodes image embeddings and prompt embeddings to mask logits and IoU scores.

    iou_sigmoid: apply a sigmoid to IoU scores, as SAM 2 does; the scores of SAM may lie outside [0, 1].
    iou_from_masks: add to each score a value computed from statistics of its mask (`MaskStatisticsHead`), which a model trained
        from scratch learns much sooner than to read the quality of a mask off the IoU token.
    """

    def __init__(
        self, *, dim: int, transformer: TwoWayTransformer, iou_sigmoid: bool = False, iou_from_masks: bool = False
    ) -> None:
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
        self.mask_statistics_head = MaskStatisticsHead() if iou_from_masks else None
        self._init_outputs(upscaled_dim=dim // 8)

    def _init_outputs(self, *, upscaled_dim: int) -> None:
        """Initialize the outputs to small masks and IoU scores near zero.

        If masks start at half of all pixels, the first steps lower all logits so strongly that the decoder no longer depends
        on its prompt; and an IoU head with an initial error above 1 dominates the gradient. Either costs hundreds of steps.
        Released weights overwrite this.
        """
        for upscale in (self.output_upscaling[0], self.output_upscaling[3]):
            nn.init.normal_(upscale.weight, std=len(upscale.weight) ** -0.5)  # type: ignore[arg-type]
        for mlp in self.output_hypernetworks_mlps:
            cast(MLP, mlp).init_last_layer(gain=0.3, bias=INITIAL_MASK_LOGIT / upscaled_dim)
        self.iou_prediction_head.init_last_layer(gain=0.02, bias=INITIAL_IOU_LOGIT if self.iou_sigmoid else 0.0)

    @property
    def iou_from_masks(self) -> bool:
        """True if the scores also depend on the predicted masks."""
        return self.mask_statistics_head is not None

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
        """Predict three candidate masks for each prompt if `multimask_output`, else one.

        image_embeddings: E is C or, with the encoder's `high_res_features`, 4 C.
        image_pe: positional encoding of the image tokens. sparse, dense: embeddings of N prompts by the prompt encoder.
        min_iou: prompts none of whose scores reach it are not upscaled and get logits of -inf. None upscales all. With
            `iou_from_masks` all are upscaled, because the scores depend on the masks.

        Images are decoded one by one, so a prediction does not depend on the other images of the batch. Raises ValueError if
        E is neither C nor 4 C.
        """
        _, h, w = image_pe.shape
        num_masks = NUM_MULTIMASK_OUTPUTS if multimask_output else 1
        parts, order = [], []
        prediction = Prediction(
            mask_logits=sparse.new_empty(len(sparse), num_masks, 4 * h, 4 * w),
            iou_scores=sparse.new_empty(len(sparse), num_masks),
        )
        for job in self.decode_jobs(image_embeddings, image_index, image_pe, sparse, dense, multimask_output, min_iou):
            chunks = job.rows.split(job.chunk_size)
            for rows in chunks:
                decode = partial(job.decode, rows)
                if not torch.is_grad_enabled():
                    for out, part in zip((prediction.mask_logits, prediction.iou_scores), decode(), strict=True):
                        out.index_copy_(0, rows, part.to(out.dtype))
                    continue
                # Recomputing what does not fit in the cache is faster in the backward pass than loading it from memory.
                parts.append(checkpoint(decode, use_reentrant=False) if len(chunks) > 1 else decode())
                order.append(rows)
        if not parts:
            return prediction
        mask_logits, iou_scores = (torch.cat(values)[torch.cat(order).argsort()] for values in zip(*parts, strict=True))
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
        """Yield a job for each image that has prompts, for callers that do not need all predictions at once; see `forward`."""
        hw, num_masks = (image_pe.shape[1], image_pe.shape[2]), NUM_MULTIMASK_OUTPUTS if multimask_output else 1
        tokens = self._tokens(sparse)
        has_low_rank = self.transformer.update_rank(tokens.shape[1]) < MAX_LOW_RANK_SHARE * image_pe.shape[0]
        positions = self.transformer.project_positions(image_pe.flatten(1))
        chunk_size = max(1, chunk_sizes_for(image_pe.device).image_tokens // image_pe.numel())
        for i, rows in _rows_by_image(image_index, len(image_embeddings)):
            low_rank = has_low_rank and len(rows) >= MIN_PROMPTS_FOR_LOW_RANK
            image = self._prepare_image(image_embeddings[i], dense, positions, low_rank)
            tokens_type = LowRankImageTokens if low_rank else DenseImageTokens
            decode = partial(self._decode_rows, image, tokens, tokens_type, dense, hw, num_masks, min_iou)
            yield DecodeJob(rows, chunk_size, decode)

    def _tokens(self, sparse: Float[Tensor, "N P C"]) -> Float[Tensor, "N T C"]:
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], 1)

    def _prepare_image(
        self, image: Float[Tensor, "E h w"], dense: DensePromptEmbedding, positions: list[Float[Tensor, "I L"]], low_rank: bool
    ) -> _PreparedImage:
        """Compute everything that depends only on the image, up to the first upscaling layer."""
        dim = len(dense.constant)
        if len(image) not in (dim, 4 * dim):
            raise ValueError(f"image embeddings have {len(image)} channels, expected {dim}, or {4 * dim} with high_res_features")
        shared = SharedImageTokens(image[:dim].flatten(1) + dense.constant[:, None], dense.maps, dense=not low_rank)
        projections = self.transformer.prepare_image(shared, positions)
        upscaled = shared.project(self._upscaling()[0].weight.permute(2, 3, 1, 0).flatten(0, 2), 1)
        return _PreparedImage(projections, upscaled, image[dim:].flatten(1).T.contiguous() if len(image) > dim else None)

    def _decode_rows(
        self,
        image: _PreparedImage,
        all_tokens: Float[Tensor, "N T C"],
        tokens_type: type[LowRankImageTokens],
        dense: DensePromptEmbedding,
        grid_hw: tuple[int, int],
        num_masks: int,
        min_iou: float | None,
        rows: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "n M H W"], Float[Tensor, "n M"]]:
        """Predict mask logits and IoU scores for some prompts of one image."""
        image_tokens = tokens_type(dense.select_features(rows))
        tokens = self.transformer(all_tokens[rows], image_tokens, image.projections)
        outputs = range(1) if num_masks == 1 else range(1, 1 + num_masks)
        scores = self.iou_prediction_head(tokens[:, 0])[:, outputs.start : outputs.stop]
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in outputs], 1)
        if self.mask_statistics_head is not None:
            logits = self._mask_logits(image_tokens, image, weights, grid_hw)
            return logits, self._iou(scores + self.mask_statistics_head(logits))
        iou = self._iou(scores)
        if min_iou is None:
            return self._mask_logits(image_tokens, image, weights, grid_hw), iou
        passing = (iou >= min_iou).any(1).nonzero()[:, 0]
        if len(passing) == len(iou):
            return self._mask_logits(image_tokens, image, weights, grid_hw), iou
        logits = weights.new_full((len(tokens), num_masks, 4 * grid_hw[0], 4 * grid_hw[1]), -torch.inf)
        if len(passing):
            selected = image_tokens.select(passing)
            logits[passing] = self._mask_logits(selected, image, weights[passing], grid_hw).to(logits.dtype)
        return logits, iou

    def _iou(self, scores: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        return scores.sigmoid() if self.iou_sigmoid else scores

    def _mask_logits(
        self, image_tokens: LowRankImageTokens, image: _PreparedImage, weights: Float[Tensor, "N M D"], grid_hw: tuple[int, int]
    ) -> Float[Tensor, "N M H W"]:
        """Upscale the image tokens four times, in chunks that fit the cache, and multiply them with the mask weights."""
        bias = self._upscaling()[0].bias
        assert bias is not None
        num_tokens = max(1, chunk_sizes_for(weights.device).upscaling // (len(weights) * image.upscaled.weight.shape[1]))
        features = repeat(None) if image.high_res_features is None else image.high_res_features.split(num_tokens)
        chunks = zip(image_tokens.project_chunks(image.upscaled, bias.repeat(4), num_tokens), features, strict=False)
        return _to_pixel_order(torch.cat([weights @ self._upscale(x, added).mT for x, added in chunks], 2), grid_hw)

    def _upscale(self, children: Float[Tensor, "N l C"], features: Float[Tensor, "l E"] | None) -> Float[Tensor, "N l*16 D"]:
        """Compute the output upscaling after its first transposed convolution, the 4 x 4 pixels of an image token in sequence.

        A transposed convolution of kernel and stride 2 is a linear map from a pixel to its 2 x 2 children. Computed like this,
        channels stay last, and norms and activations run over contiguous memory.
        """
        _, norm, second = self._upscaling()
        half, quarter = (None, None) if features is None else features.tensor_split([children.shape[2]], 1)
        x = (children if half is None else children + half).unflatten(2, (4, -1))
        x = _conv_transpose_2x2(F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)), second)
        x = F.gelu(x if quarter is None else x + quarter.unflatten(1, x.shape[2:]))
        return x.flatten(1, -2)

    def _upscaling(self) -> tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]:
        return cast(
            "tuple[nn.ConvTranspose2d, LayerNorm2d, nn.ConvTranspose2d]", tuple(self.output_upscaling[i] for i in (0, 1, 3))
        )


def _rows_by_image(image_index: Int[Tensor, " N"], num_images: int) -> Iterator[tuple[int, Int[Tensor, " n"]]]:
    """Yield the index of each image that has prompts, and the indices of these. A single image needs no synchronization."""
    if num_images == 1:
        if len(image_index):
            yield 0, torch.arange(len(image_index), device=image_index.device)
        return
    for i in image_index.unique().tolist():
        yield i, (image_index == i).nonzero()[:, 0]


def _to_pixel_order(products: Float[Tensor, "N M _"], grid_hw: tuple[int, int]) -> Float[Tensor, "N M H W"]:
    """Reorder image tokens, children (y, x) and grandchildren (y, x) to rows and columns of pixels.

    Neighbours in a row are moved as one complex number, which takes a quarter of the time.
    """
    n, m, (h, w) = *products.shape[:2], grid_hw
    if products.dtype == torch.bfloat16:  # there is no complex bfloat16
        products = products.float()
    pairs = torch.view_as_complex(products.view(n, m, h, w, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5)
    return torch.view_as_real(pairs.contiguous()).view(n, m, 4 * h, 4 * w)


def _conv_transpose_2x2(x: Float[Tensor, "... i"], conv: nn.ConvTranspose2d) -> Float[Tensor, "... 2 2 o"]:
    """Apply a 2 x 2, stride 2 transposed convolution with channels last, the children as two new axes (y, x)."""
    weight = conv.weight.permute(0, 2, 3, 1)  # i 2 2 o
    assert conv.bias is not None
    flat = torch.addmm(conv.bias.repeat(4), x.flatten(0, -2), weight.flatten(1))
    return flat.view(*x.shape[:-1], *weight.shape[1:])
