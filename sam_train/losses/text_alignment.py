"""Auxiliary loss that aligns text tokens with the image tokens of the masks they describe."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

PRIOR_LOGIT = -3.0
"""Logit of an unrelated image token: one in twenty belongs to the described object."""


def text_alignment_loss(
    text_tokens: Float[Tensor, "N C"],
    image_embeddings: Float[Tensor, "B E h w"],
    image_index: Int[Tensor, " N"],
    target_masks: Bool[Tensor, "N H W"],
) -> Float[Tensor, ""]:
    """Return the alignment loss, mean over the prompts.

    For each image token, the loss is the cross entropy between its product with the prompt's text token and the share of the
    token that the mask covers. It is summed over the image and divided by the number of tokens under the mask (at least 1).

    text_tokens: output of `PromptEncoder.embed_text`. image_embeddings: E is C, or 4 C, of which the first C are used (without
    `high_res_features`). target_masks: in the model frame.

    The paper trains without it (section D.5), from a pre-trained image encoder and text encoder (CLIP). From random weights,
    neither image features nor text embeddings alone lower the mask loss, and a model predicts the same mask for every text
    prompt for thousands of steps.
    """
    dim, (h, w) = text_tokens.shape[1], image_embeddings.shape[2:]
    tokens = image_embeddings[:, :dim].flatten(2)[image_index]
    logits = torch.einsum("nc,ncl->nl", text_tokens, tokens).float() * dim**-0.5 + PRIOR_LOGIT
    covered = F.adaptive_avg_pool2d(target_masks.float()[:, None], (h, w)).flatten(1)
    entropy = F.binary_cross_entropy_with_logits(logits, covered, reduction="none").sum(1)
    return (entropy / covered.sum(1).clamp(min=1)).mean()
