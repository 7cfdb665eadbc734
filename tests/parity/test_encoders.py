"""The image encoder against segment_anything 1.0's in the released shapes, and its attention against a written-out one.

Width, heads, head size and windows of ViT-B, L and H as released; two blocks and small images, so that it is quick.
tests/benchmarks/encoder.py compares a whole ViT-B at 1024 pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference_models import reference_image_encoder
from torch import Tensor, nn

from sam_train.model import chunk_sizes
from sam_train.model.attention import Attention
from sam_train.model.image_encoder import ImageEncoder

VARIANTS = {"vit_b": (768, 12), "vit_l": (1024, 16), "vit_h": (1280, 16)}


def pair(embed_dim: int, num_heads: int, *, image_size: int) -> tuple[nn.Module, ImageEncoder]:
    """Theirs and ours with the same random weights, tables of positions and biases not left at zero."""
    numbers: dict[str, Any] = {
        "image_size": image_size,
        "patch_size": 16,
        "embed_dim": embed_dim,
        "depth": 2,
        "num_heads": num_heads,
        "global_attn_indexes": (1,),
        "window_size": 14,
        "out_chans": 256,
    }
    reference = reference_image_encoder(**numbers)
    for parameter in reference.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    ours = ImageEncoder(**numbers).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return reference, ours


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_embeddings_of_the_released_shapes(variant: str) -> None:
    """A 20 x 20 map: four windows that reach over it, and more rows than a strip has."""
    reference, ours = pair(*VARIANTS[variant], image_size=320)
    image = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        expected, actual = reference(image), ours(image)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_gradients_of_every_parameter() -> None:
    reference, ours = pair(96, 6, image_size=320)
    image, weights, grads = torch.randn(2, 3, 320, 320), torch.randn(2, 256, 20, 20), []
    for encoder in (reference, ours):
        (encoder(image) * weights).sum().backward()
        grads.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[0].items():
        assert expected is not None
        assert expected.abs().max() > 0, name
        assert (grads[1][name] - expected).abs().max() <= 1e-3 * expected.abs().max(), name


def written_out(module: Attention, x: Tensor) -> Tensor:
    """One softmax a query over the tokens of its window, in the order of the formula."""
    batch, h, w, dim = x.shape
    heads, head_dim = module.num_heads, dim // module.num_heads
    rows, columns = (module.window_size,) * 2 if module.window_size else (h, w)
    outside = module.qkv(torch.zeros(dim, dtype=x.dtype))  # a token that only fills a window
    qkv, answer = module.qkv(x), []
    for b in range(batch):
        for y, c in ((y, c) for y in range(h) for c in range(w)):
            tokens = [(i, j) for i in range(y // rows * rows, y // rows * rows + rows) for j in window(c, columns)]
            keys_values = torch.stack([qkv[b, i, j] if i < h and j < w else outside for i, j in tokens])
            query, (_, key, value) = qkv[b, y, c, :dim].view(heads, head_dim), keys_values.view(-1, 3, heads, head_dim).unbind(1)
            scores = torch.einsum("nd,lnd->nl", query, key) / math.sqrt(head_dim)
            if module.use_rel_pos:
                scores = scores + query @ torch.stack([module.rel_pos_h[y - i + rows - 1] for i, _ in tokens]).T
                scores = scores + query @ torch.stack([module.rel_pos_w[c - j + columns - 1] for _, j in tokens]).T
            answer.append(torch.einsum("nl,lnd->nd", scores.softmax(-1), value).flatten())
    return module.proj(torch.stack(answer).view(batch, h, w, dim))


def window(position: int, size: int) -> range:
    return range(position // size * size, position // size * size + size)


@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("window_size", [0, 3])
@pytest.mark.parametrize("limit", [1, 100, 400, 2**22])
def test_attention_written_out(monkeypatch: pytest.MonkeyPatch, limit: int, window_size: int, use_rel_pos: bool) -> None:
    """Answers and all gradients, whether the bias is made at once or for some windows, heads or rows at a time."""
    monkeypatch.setattr(chunk_sizes, "CPU_CHUNK_SIZES", replace(chunk_sizes.CPU_CHUNK_SIZES, attention_bias=limit))
    module = Attention(8, 2, window_size=window_size, input_size=5, use_rel_pos=use_rel_pos).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, weights = torch.randn(2, 5, 5, 8, dtype=torch.double, requires_grad=True), torch.randn(2, 5, 5, 8, dtype=torch.double)
    inputs = [x, *module.parameters()]
    expected, actual = written_out(module, x), module(x)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(module(x), expected, rtol=0, atol=1e-10)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for actual_grad, expected_grad in zip(torch.autograd.grad((actual * weights).sum(), inputs), expected_grads, strict=True):
        assert expected_grad.abs().max() > 0
        assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=1e-10)
