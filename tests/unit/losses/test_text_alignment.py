"""Text alignment loss: equals the written-out formula; gradients reach text tokens and image embeddings."""

from __future__ import annotations

import math

import pytest
import torch

from sam_train.losses import text_alignment_loss


def test_equals_the_cross_entropy_with_covered_shares() -> None:
    torch.manual_seed(0)
    words, embeddings = torch.randn(3, 5), torch.randn(2, 7, 4, 4)  # two channels of details
    index, masks = torch.tensor([0, 0, 1]), torch.rand(3, 16, 16) < 0.3
    total = 0.0
    for n in range(3):
        entropy, covered = 0.0, 0.0
        for y in range(4):
            for x in range(4):
                share = float(masks[n, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].float().mean())
                logit = float(words[n] @ embeddings[index[n], :5, y, x]) / math.sqrt(5) - 3
                entropy -= share * math.log(1 / (1 + math.exp(-logit))) + (1 - share) * math.log(1 / (1 + math.exp(logit)))
                covered += share
        total += entropy / max(covered, 1) / 3
    assert float(text_alignment_loss(words, embeddings, index, masks)) == pytest.approx(total, rel=1e-5)


def test_gradients_reach_text_and_embeddings_but_not_high_res_features() -> None:
    words, embeddings = torch.randn(1, 4, requires_grad=True), torch.randn(1, 6, 2, 2, requires_grad=True)
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = True
    text_alignment_loss(words, embeddings, torch.tensor([0]), masks).backward()
    assert words.grad is not None
    assert embeddings.grad is not None
    assert (words.grad != 0).all()
    assert (embeddings.grad[0, :4] != 0).all()
    assert (embeddings.grad[0, 4:] == 0).all()
    # Under the mask an image token is drawn towards the words, elsewhere away from them.
    towards = -(embeddings.grad[0, :4] * words.detach()[0, :, None, None]).sum(0)
    assert towards[0, 0] > 0
    assert (towards.flatten()[1:] < 0).all()
