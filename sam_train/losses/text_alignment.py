"""What shows words their meaning: image tokens that belong to what they name, and those that do not."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

# Of an image token that nothing is known of: one in twenty belongs to what is named.
PRIOR_LOGIT = -3.0


def text_alignment_loss(
    words: Float[Tensor, "N C"],
    image_embeddings: Float[Tensor, "B E h w"],
    image_index: Int[Tensor, " N"],
    target_masks: Bool[Tensor, "N H W"],
) -> Float[Tensor, ""]:
    """Mean over the prompts of the cross entropy between an image token's product with the prompt's token of words, and the share
    of it that the mask covers, summed over the image and divided by the number of tokens under the mask (1 at least).

    words: as the prompt encoder makes them; image_embeddings: E is C, or more with `details`, which are left out.

    The paper trains without it (section D.5), from an image encoder and words (CLIP) that know what things are. From random
    weights neither features without words nor words without features lower the loss, and a model stays for thousands of steps
    with an answer that is the same whatever it is asked.
    """
    dim, (h, w) = words.shape[1], image_embeddings.shape[2:]
    tokens = image_embeddings[:, :dim].flatten(2)[image_index]
    logits = torch.einsum("nc,ncl->nl", words, tokens).float() * dim**-0.5 + PRIOR_LOGIT
    covered = F.adaptive_avg_pool2d(target_masks.float()[:, None], (h, w)).flatten(1)
    entropy = F.binary_cross_entropy_with_logits(logits, covered, reduction="none").sum(1)
    return (entropy / covered.sum(1).clamp(min=1)).mean()
