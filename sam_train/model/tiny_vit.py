"""The image encoder of MobileSAM: TinyViT with 5 million parameters (Wu et al. 2022; Zhang et al. 2023, section 3).

A convolutional stem, a stage of inverted bottlenecks and three stages of windowed attention, with patch merging between the
stages. The last merge has stride 1, so that the grid is 1/16 of the image, as the mask decoder expects.
State-dict keys are those of the released `mobile_sam.pt`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.attention import window_partition, window_unpartition
from sam_train.model.layers import DropPath, LayerNorm2d

ENCODER_STRIDE = 16
"""Side of an image token in pixels: 4 by the stem times 2 by each of the first two merges."""
MERGE_STRIDES = (2, 2, 1)
"""Stride of the patch merging after each of the first three stages."""
EXPANSION_RATIO = 4
"""Ratio of hidden to outer width in an MBConv and an MLP."""


class TinyViT(nn.Module):
    """TinyViT that encodes B 3 H W normalised pixels as B C h w image embeddings, h = H / 16 and w = W / 16.

    image_size: side of the model frame in pixels. The weights do not depend on it.
    embed_dims, depths, num_heads, window_sizes: one value for each of the four stages; the first stage has no attention and
        ignores its heads and window.
    drop_path_rate: rate of the last block; it grows linearly from 0 at the first.
    freeze_batch_norm: use the running statistics of batch norms in training too. Released weights need it: their norms are
        already folded into the convolutions, so the statistics of a batch would rescale every layer.
    Raises ValueError for images whose sides are not multiples of 16.
    """

    def __init__(
        self,
        *,
        image_size: int,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_sizes: Sequence[int],
        out_chans: int,
        drop_path_rate: float = 0.0,
        freeze_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.depths, self.frozen_batch_norm = image_size, tuple(depths), freeze_batch_norm
        rates = iter([drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        self.patch_embed = TinyViTPatchEmbed(embed_dims[0])
        self.layers = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            blocks: list[nn.Module] = [
                TinyViTBlock(dim, num_heads[i], window_sizes[i], next(rates)) if i else MBConv(dim, next(rates))
                for _ in range(depth)
            ]
            merge = PatchMerging(dim, embed_dims[i + 1], MERGE_STRIDES[i]) if i + 1 < len(depths) else None
            self.layers.append(TinyViTStage(blocks, merge))
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            if isinstance(module, FreezableBatchNorm2d):
                module.frozen = freeze_batch_norm

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks of all stages, in forward order."""
        return [block for stage in self.layers for block in stage.blocks]  # type: ignore[union-attr]

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        if x.shape[2] % ENCODER_STRIDE or x.shape[3] % ENCODER_STRIDE:
            raise ValueError(f"an image of {x.shape[2]} x {x.shape[3]}: both sides must be multiples of {ENCODER_STRIDE}")
        # Channels last: half of the layers are attention and linear layers over channels, which need no copy then.
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)


class FreezableBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that can be frozen."""

    frozen = False
    """If True, training uses the running statistics too, without updating them."""


class ConvBatchNorm(nn.Sequential):
    """Convolution without bias followed by a batch norm.

    When the norm uses its running statistics, its scale and shift per channel are folded into the convolution.
    """

    c: nn.Conv2d
    bn: FreezableBatchNorm2d

    def __init__(self, i: int, o: int, kernel: int, *, stride: int = 1, groups: int = 1, norm_weight: float = 1.0) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(i, o, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False))
        norm = FreezableBatchNorm2d(o)
        nn.init.constant_(norm.weight, norm_weight)
        self.add_module("bn", norm)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        conv, norm = self.c, self.bn
        if norm.training and not norm.frozen:
            return norm(conv(x))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class TinyViTPatchEmbed(nn.Module):
    """Stem of two convolutions of stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBatchNorm(3, dim // 2, 3, stride=2), nn.GELU(), ConvBatchNorm(dim // 2, dim, 3, stride=2))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return self.seq(x)


class TinyViTStage(nn.Module):
    """Blocks of one width, followed by the patch merging to the next stage, if any."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D i j"]:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise 3 x 3, project; its last norm is initialised to zero, so it starts as identity."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        hidden = EXPANSION_RATIO * dim
        self.conv1 = ConvBatchNorm(dim, hidden, 1)
        self.conv2 = ConvBatchNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBatchNorm(hidden, dim, 1, norm_weight=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.drop_path(self.conv3(hidden)))


class PatchMerging(nn.Module):
    """Patch merging: changes the width to that of the next stage and downsamples by `stride`."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBatchNorm(dim, out_dim, 1)
        self.conv2 = ConvBatchNorm(out_dim, out_dim, 3, stride=stride, groups=out_dim)
        self.conv3 = ConvBatchNorm(out_dim, out_dim, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D i j"]:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyViTBlock(nn.Module):
    """Transformer block: windowed attention, a depthwise convolution that connects the windows, and an MLP."""

    def __init__(self, dim: int, num_heads: int, window_size: int, drop_path: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = TinyViTAttention(dim, num_heads, window_size)
        self.local_conv = ConvBatchNorm(dim, dim, 3, groups=dim)
        self.mlp = TinyViTMlp(dim)
        self.drop_path, self.mlp_drop_path = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        tokens = x.permute(0, 2, 3, 1)
        # Padding precedes the norm, which is inside the attention: padding tokens are attended to, as in the released code.
        windows, padded_hw = window_partition(tokens, self.window_size)
        attended = window_unpartition(self.attn(windows), self.window_size, padded_hw, tokens.shape[1:3])
        x = self.local_conv((tokens + self.drop_path(attended)).permute(0, 3, 1, 2))
        tokens = x.permute(0, 2, 3, 1)
        return (tokens + self.mlp_drop_path(self.mlp(tokens))).permute(0, 3, 1, 2)


class TinyViTAttention(nn.Module):
    """Multi-head attention in a square window, with a learned bias for each pair of absolute row and column distances."""

    bias_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.register_buffer("bias_index", relative_distance_index(window_size), persistent=False)

    def forward(self, x: Float[Tensor, "W s s C"]) -> Float[Tensor, "W s s C"]:
        # In released weights, query, key and value of a head are adjacent.
        q, k, v = self.qkv(self.norm(x)).flatten(1, 2).unflatten(-1, (self.num_heads, 3, -1)).transpose(1, 2).unbind(3)
        # Gather the bias in every forward pass: a cached one would be stale after a training step or after loading weights.
        bias = F.embedding(self.bias_index, self.attention_biases.T).permute(2, 0, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None]).transpose(1, 2).reshape(x.shape)
        return self.proj(x)


class TinyViTMlp(nn.Module):
    """MLP of a transformer block, including its norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, EXPANSION_RATIO * dim)
        self.fc2 = nn.Linear(EXPANSION_RATIO * dim, dim)

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


def relative_distance_index(size: int) -> Int[Tensor, "L L"]:
    """Return size * |row distance| + |column distance| for each pair of the L = size^2 positions of a window."""
    position = torch.arange(size)
    distance = (position[:, None] - position).abs()
    return (size * distance[:, None, :, None] + distance[None, :, None, :]).reshape(size**2, size**2)
