"""The image encoder: ViTDet as SAM adapts it (paper, section A; segment_anything/modeling/image_encoder.py).

Windowed attention with a few global blocks, absolute and decomposed relative positions, and a neck that projects
to the decoder's width. State-dict keys are the released ones. `stem="conv"` is an addition of this project: three
stride-2 convolutions in place of the linear patch embedding, with which a small ViT learns from scratch in
minutes (Xiao et al., "Early convolutions help transformers see better").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.model.attention import Attention
from sam_train.model.layers import DropPath, LayerNorm2d, MLPBlock

# Rows of tokens that the MLP of a global block processes together in evaluation on a CPU.
_STRIP_ROWS = 16


class ImageEncoder(nn.Module):
    """ViT that encodes B 3 H W normalised pixels as B E h w image embeddings, h = H / patch_size and w = W / patch_size.

    E is C = `out_chans`, or 4 C with `high_res_features`: the features of the convolutional stem at half and a quarter of the
    patch size, which the decoder adds when it upscales, as SAM 2's high-resolution features. The C / 4 and C / 8 channels of
    the two finer grids are folded into the channels of their image token, in the decoder's order of children (y, x) and
    grandchildren. State-dict keys of that module begin with `details`.

    image_size: side in pixels for which the position tables are learned; they are interpolated for other sides.
    Raises ValueError for sides that are not multiples of patch_size.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_attn_indexes: Sequence[int],
        window_size: int,
        out_chans: int,
        use_rel_pos: bool = True,
        drop_path_rate: float = 0.0,
        stem: str = "linear",
        high_res_features: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.image_size, self.patch_size, self.depth = image_size, patch_size, depth
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim) if stem == "linear" else ConvStem(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            ViTBlock(
                embed_dim,
                num_heads,
                window_size=0 if i in global_attn_indexes else window_size,
                input_size=grid,
                use_rel_pos=use_rel_pos,
                drop_path=rates[i],
            )
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self.details = HighResFeatures(self.patch_embed, out_chans) if high_res_features else None
        self.apply(_init_weights)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
        if x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise ValueError(f"images are {tuple(x.shape[2:])}, expected multiples of patch_size {self.patch_size}: pad them")
        *finer, x = self.patch_embed(x)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        x = self.neck(x.permute(0, 3, 1, 2))
        return x if self.details is None else torch.cat([x, *self.details(x, finer)], 1)

    def _positions(self, h: int, w: int) -> Float[Tensor, "1 h w C"]:
        if self.pos_embed.shape[1:3] == (h, w):
            return self.pos_embed
        positions = F.interpolate(self.pos_embed.permute(0, 3, 1, 2), (h, w), mode="bicubic", align_corners=False)
        return positions.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Linear patch embedding. Return a list with the embedded patches only, since there are no features on finer grids."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ C"]]:
        # Contiguous: otherwise every residual would keep the layout of the convolution and every norm would copy it.
        return [self.proj(x).permute(0, 2, 3, 1).contiguous()]


class ConvStem(nn.Module):
    """Stride-2 convolutions down to the patch grid, widths doubling up to `embed_dim`.

    Return the feature maps of all resolutions, finest first; the last one is the embedded patches.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        if 2**steps != patch_size or steps < 1:
            raise ValueError(f"a convolutional stem needs a power of two as patch_size, got {patch_size}")
        widths = [3, *[max(24, embed_dim // 2 ** (steps - i)) for i in range(1, steps + 1)]]
        self.widths = widths[1:]
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), LayerNorm2d(o), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        # Norms are over channels: with channels last from the start, no layer has to copy.
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.GELU):
                features.append(x.permute(0, 2, 3, 1))
        return [*features[:-1], x.permute(0, 2, 3, 1)]


class HighResFeatures(nn.Module):
    """Feature pyramid over the stem at half and a quarter of the patch size, folded into the channels of the image tokens.

    From the tokens to the finer grids, each level adds the upsampled coarser level and is convolved once more, as in a feature
    pyramid network (Lin et al. 2017). It is computed once per image; for each prompt the decoder only adds it.
    """

    def __init__(self, stem: nn.Module, out_chans: int) -> None:
        super().__init__()
        if not isinstance(stem, ConvStem) or len(stem.widths) < 3:
            raise ValueError("high-resolution features need a convolutional stem with a patch_size of 8 or more")
        half, quarter = stem.widths[-2], stem.widths[-3]
        self.to_half, self.to_quarter = PyramidLevel(out_chans, half), PyramidLevel(half, quarter)
        self.at_half, self.at_quarter = nn.Linear(half, out_chans // 4), nn.Linear(quarter, out_chans // 8)

    def forward(
        self, tokens: Float[Tensor, "B C h w"], finer: list[Float[Tensor, "B _ _ _"]]
    ) -> tuple[Float[Tensor, "B _ h w"], Float[Tensor, "B _ h w"]]:
        half = self.to_half(tokens.permute(0, 2, 3, 1), finer[-1])
        return self.fold(self.at_half(half), self.at_quarter(self.to_quarter(half, finer[-2])))

    @staticmethod
    def fold(
        half: Float[Tensor, "B _ _ _"], quarter: Float[Tensor, "B _ _ _"]
    ) -> tuple[Float[Tensor, "B _ h w"], Float[Tensor, "B _ h w"]]:
        """Fold the pixels of the two finer grids into channels of their image token, in the decoder's order."""
        half = half.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 2, 4, 5, 1, 3)  # y x o, h w
        quarter = quarter.unflatten(2, (-1, 2, 2)).unflatten(1, (-1, 2, 2)).permute(0, 2, 5, 3, 6, 7, 1, 4)  # y x y x o, h w
        return half.flatten(1, 3), quarter.flatten(1, 5)


class PyramidLevel(nn.Module):
    """A level of a feature pyramid: features plus the upsampled coarser level of half the side, and two 3 x 3 convolutions."""

    def __init__(self, coarser_dim: int, dim: int) -> None:
        super().__init__()
        self.lateral = nn.Linear(coarser_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convs = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, coarser: Float[Tensor, "B h w _"], x: Float[Tensor, "B 2*h 2*w C"]) -> Float[Tensor, "B 2*h 2*w C"]:
        x = x + self.lateral(coarser).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return x + self.convs(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ViTBlock(nn.Module):
    """Pre-norm transformer block; window_size 0 means global attention."""

    def __init__(
        self, dim: int, num_heads: int, *, window_size: int, input_size: int, use_rel_pos: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, window_size=window_size, input_size=input_size, use_rel_pos=use_rel_pos)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 4 * dim)
        self.drop_path, self.mlp_drop_path = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        # In training process the whole map: drop path draws once per sample, and autograd stores every activation anyway.
        if self.training or torch.is_grad_enabled() or x.device.type != "cpu":
            return self._feed_forward(self._attend(x))
        # On a CPU process strips of rows: windows do not attend outside their strip, and the intermediate results (the
        # hidden layer, padded windows) are small enough for the cache and for memory that is already mapped.
        if rows := self.attn.window_size:
            return torch.cat([self._feed_forward(self._attend(strip)) for strip in x.split(rows, 1)], 1)
        return torch.cat([self._feed_forward(strip) for strip in self._attend(x).split(_STRIP_ROWS, 1)], 1)

    def _attend(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        return x + self.drop_path(self.attn(self.norm1(x)))

    def _feed_forward(self, x: Float[Tensor, "B h w C"]) -> Float[Tensor, "B h w C"]:
        return x + self.mlp_drop_path(self.mlp(self.norm2(x)))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
