"""The proposer: a class-agnostic object detector for the semi-automatic stage (paper, section 4), on image embeddings.

The paper trained Faster R-CNN with a ResNet; here a small head uses the existing embeddings of the image encoder. It follows
CenterNet ("Objects as Points", Zhou et al. 2019): a heatmap of object centres, and at each centre the distances to the four sides
of the box. Each object size has its own maps, so that a part, an object and a whole may share a centre.
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

PRIOR_PROBABILITY = 0.01
"""Initial probability that a cell is a centre (Lin et al. 2017, section 3.3): most cells are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMaps:
    """Output of the proposer for S object sizes; a cell of h w is half an image token wide."""

    center_logits: Float[Tensor, "B S h w"]
    """Logits that a cell contains the centre of an object."""
    log_distances: Float[Tensor, "B S 4 h w"]
    """Logarithm of the distances from the cell's centre to left, top, right and bottom of the box, in cells."""


class Proposer(nn.Module):
    """Detection head that predicts boxes from image embeddings of `embedding_dim` channels.

    width: channels of its layers.
    layers: number of 3 x 3 convolutions on the grid of the embeddings, before it is upsampled by 2.
    size_bounds: boundaries between object sizes: square root of the box area as a share of the model frame's side.
    Raises ValueError unless the bounds increase within (0, 1).
    """

    def __init__(
        self, *, embedding_dim: int, width: int = 128, layers: int = 2, size_bounds: Sequence[float] = (0.1, 0.3)
    ) -> None:
        super().__init__()
        if any(a >= b for a, b in zip([0.0, *size_bounds], [*size_bounds, 1.0], strict=True)):
            raise ValueError(f"size_bounds {list(size_bounds)}: expected increasing numbers between 0 and 1")
        self.config = {"embedding_dim": embedding_dim, "width": width, "layers": layers, "size_bounds": list(size_bounds)}
        self.size_bounds = tuple(size_bounds)
        dims = [embedding_dim, *[width] * layers]
        self.body = nn.Sequential(*(_layer(nn.Conv2d(a, b, 3, padding=1)) for a, b in pairwise(dims)))
        self.doubled = nn.Sequential(
            _layer(nn.ConvTranspose2d(dims[-1], width, 2, stride=2)), _layer(nn.Conv2d(width, width, 3, padding=1))
        )
        self.middles = nn.Conv2d(width, self.num_sizes, 1)
        self.distances = nn.Conv2d(width, 4 * self.num_sizes, 1)
        nn.init.constant_(self.middles.bias, -float(torch.tensor(1 / PRIOR_PROBABILITY - 1).log()))  # type: ignore[arg-type]

    @property
    def num_sizes(self) -> int:
        """S, the number of object sizes."""
        return len(self.size_bounds) + 1

    def forward(self, image_embeddings: Float[Tensor, "B E h w"]) -> BoxMaps:
        x = self.doubled(self.body(image_embeddings))
        distances = self.distances(x).unflatten(1, (self.num_sizes, 4))
        return BoxMaps(center_logits=self.middles(x), log_distances=distances)

    def size_classes(self, boxes_xyxy: Float[Tensor, "N 4"], image_size: int) -> Int[Tensor, " N"]:
        """Return the index of the object size, 0 to S - 1, of each box of the model frame."""
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
        """Return XYXY boxes of one image in the model frame and their scores in [0, 1], best first.

        image_hw: height and width of the image inside the model frame, to which boxes are clipped. image_size: side of the frame.
        score_thresh: minimum score. max_boxes: maximum number of boxes. nms_thresh: IoU above which the lower-scored of two boxes
        is dropped.
        """
        maps = self(image_embeddings)
        scores = maps.center_logits[0].sigmoid()
        peaks = scores * (scores == F.max_pool2d(scores[None], 3, stride=1, padding=1)[0])
        best, indices = peaks.flatten().topk(min(4 * max_boxes, peaks.numel()))
        indices = indices[best >= score_thresh]
        cell_boxes = decode_boxes(maps.log_distances[0]).permute(0, 2, 3, 1).reshape(-1, 4)[indices]
        limits = torch.tensor([image_hw[1], image_hw[0]] * 2, device=cell_boxes.device, dtype=cell_boxes.dtype)
        boxes = torch.minimum((cell_boxes * (image_size / scores.shape[2])).clamp(min=0), limits)
        valid = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        boxes, best = boxes[valid], best[best >= score_thresh][valid]
        kept = nms(boxes, best, nms_thresh)[:max_boxes].to(boxes.device)
        return boxes[kept], best[kept]


def decode_boxes(log_distances: Float[Tensor, "... 4 h w"]) -> Float[Tensor, "... 4 h w"]:
    """Return the XYXY box that each cell predicts, in cells."""
    height, width = log_distances.shape[-2:]
    y, x = (torch.arange(n, device=log_distances.device, dtype=log_distances.dtype) + 0.5 for n in (height, width))
    center = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    distances = log_distances.clamp(max=8).exp()  # exp(8) exceeds any grid and does not overflow
    return torch.cat([center - distances[..., :2, :, :], center + distances[..., 2:, :, :]], -3)


def encoder_hash(model: Sam) -> str:
    """Return the SHA-256 of the image encoder's weights as hex digits; it identifies the embeddings a proposer was trained on."""
    digest = hashlib.sha256()
    for name, weights in sorted(model.image_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _layer(convolution: nn.Module) -> nn.Sequential:
    channels = convolution.out_channels
    assert isinstance(channels, int)
    return nn.Sequential(convolution, nn.GroupNorm(16 if channels % 16 == 0 else 1, channels), nn.GELU())
