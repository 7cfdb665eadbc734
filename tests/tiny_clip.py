"""A small CLIP with random weights for tests: classes and files as of a released CLIP, without a download."""

from __future__ import annotations

import string
from pathlib import Path

import torch

DIM, IMAGE_SIZE, PATCH_SIZE = 12, 32, 8


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a folder that `transformers` reads: config, weights, and a tokenizer whose tokens are letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*string.ascii_lowercase, *string.digits]
    vocab = {token: number for number, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters), *marks])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(vocab),
        "max_position_embeddings": 24,
        "eos_token_id": vocab[marks[1]],
        "bos_token_id": vocab[marks[0]],
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=DIM))
    for parameter in model.parameters():  # with CLIP's own initialization, the embeddings of all texts are nearly equal
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
