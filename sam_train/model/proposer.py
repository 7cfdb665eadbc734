"""Stage two's object detector of one class (paper, section 4): boxes from image embeddings that are there already.

The paper trained Faster R-CNN with a ResNet; here a small head reads what the image encoder says anyway. It is CenterNet's
("Objects as Points", Zhou et al. 2019): a map of where the middles of objects are, and from each middle the distances to the four
sides, of each size of object a map of its own, so that a part, an object and a whole may have one middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sam_train.masks import nms
from sam_train.model.sam import Sam

PRIOR = 0.01
"""What an untrained head says of every cell (Lin et al. 2017, section 3.3): most have no middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMaps:
    """S sizes of object; a cell of h w is half an image token wide."""

    center_logits: Float[Tensor, "B S h w"]
    log_distances: Float[Tensor, "B S 4 h w"]
    """Logarithm of the distances from the cell's middle to left, top, right and bottom, in cells."""


class Proposer(nn.Module):
    """Image embeddings of `embedding_dim` channels to boxes.

    width: channels of its layers. layers: 3 x 3 convolutions on the embeddings' grid, before it is doubled.
    size_bounds: square roots of a box's area, as shares of the model frame's side, between which its size changes.
    Raises ValueError for bounds that do not rise in (0, 1).
    """

    def __init__(
        self, *, embedding_dim: int, width: int = 128, layers: int = 2, size_bounds: Sequence[float] = (0.1, 0.3)
    ) -> None:
        super().__init__()
        if any(a >= b for a, b in zip([0.0, *size_bounds], [*size_bounds, 1.0], strict=True)):
            raise ValueError(f"size_bounds {list(size_bounds)}: expected rising numbers between 0 and 1")
        self.config = {"embedding_dim": embedding_dim, "width": width, "layers": layers, "size_bounds": list(size_bounds)}
        self.size_bounds = tuple(size_bounds)
        dims = [embedding_dim, *[width] * layers]
        self.body = nn.Sequential(*(_layer(nn.Conv2d(a, b, 3, padding=1)) for a, b in pairwise(dims)))
        self.doubled = nn.Sequential(
            _layer(nn.ConvTranspose2d(dims[-1], width, 2, stride=2)), _layer(nn.Conv2d(width, width, 3, padding=1))
        )
        self.middles = nn.Conv2d(width, self.num_sizes, 1)
        self.distances = nn.Conv2d(width, 4 * self.num_sizes, 1)
        nn.init.constant_(self.middles.bias, -float(torch.tensor(1 / PRIOR - 1).log()))  # type: ignore[arg-type]

    @property
    def num_sizes(self) -> int:
        """S."""
        return len(self.size_bounds) + 1

    def forward(self, image_embeddings: Float[Tensor, "B E h w"]) -> BoxMaps:
        x = self.doubled(self.body(image_embeddings))
        distances = self.distances(x).unflatten(1, (self.num_sizes, 4))
        return BoxMaps(center_logits=self.middles(x), log_distances=distances)

    def size_classes(self, boxes_xyxy: Float[Tensor, "N 4"], image_size: int) -> Int[Tensor, " N"]:
        """Which of the S maps a box of the model frame belongs to."""
        sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(1).sqrt() / image_size
        return torch.bucketize(sides, torch.tensor(self.size_bounds, device=sides.device), right=True)

    @torch.inference_mode()
    def propose(
        self,
        image_embeddings: Float[Tensor, "1 E h w"],
        image_hw: tuple[int, int],
        image_size: int,
        *,
        score_thresh: float,
        max_boxes: int,
        nms_thresh: float,
    ) -> tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]:
        """Boxes of one image and their scores in 0..1, best first. Model frame, inside the image's height and width there.

        score_thresh, max_boxes, nms_thresh: the least score, the most boxes, the IoU above which the lesser of two goes.
        """
        maps = self(image_embeddings)
        scores = maps.center_logits[0].sigmoid()
        peaks = scores * (scores == F.max_pool2d(scores[None], 3, stride=1, padding=1)[0])
        best, places = peaks.flatten().topk(min(4 * max_boxes, peaks.numel()))
        places = places[best >= score_thresh]
        cells = decode_boxes(maps.log_distances[0]).permute(0, 2, 3, 1).reshape(-1, 4)[places]
        limits = torch.tensor([image_hw[1], image_hw[0]] * 2, device=cells.device, dtype=cells.dtype)
        boxes = torch.minimum((cells * (image_size / scores.shape[2])).clamp(min=0), limits)
        sound = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        boxes, best = boxes[sound], best[best >= score_thresh][sound]
        kept = nms(boxes, best, nms_thresh)[:max_boxes].to(boxes.device)
        return boxes[kept], best[kept]


def decode_boxes(log_distances: Float[Tensor, "... 4 h w"]) -> Float[Tensor, "... 4 h w"]:
    """XYXY boxes in cells, one for each cell."""
    height, width = log_distances.shape[-2:]
    y, x = (torch.arange(n, device=log_distances.device, dtype=log_distances.dtype) + 0.5 for n in (height, width))
    middle = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    distances = log_distances.clamp(max=8).exp()  # 8: beyond any grid, and no overflow
    return torch.cat([middle - distances[..., :2, :, :], middle + distances[..., 2:, :, :]], -3)


def encoder_hash(model: Sam) -> str:
    """SHA-256 of the image encoder's weights, hex: a proposer reads the embeddings of this one, whatever the decoder."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.image_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _layer(convolution: nn.Module) -> nn.Sequential:
    channels = convolution.out_channels
    assert isinstance(channels, int)
    return nn.Sequential(convolution, nn.GroupNorm(16 if channels % 16 == 0 else 1, channels), nn.GELU())
