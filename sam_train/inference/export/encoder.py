"""The image encoder with its normalisation and padding as an ONNX graph, traced by torch.

Inputs: image [1, 3, S, S] uint8 RGB, model frame; size_hw [1, 2] int64, height and width of the image inside it.
Output: image_embeddings [1, E, h, w], the first input of decoder.onnx.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from sam_train.inference.export.graph import IR_VERSION, OPSET
from sam_train.model import Sam

PROTOBUF_LIMIT = 2**31  # largest size of one file in bytes


class _Encoder(nn.Module):
    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image: UInt8[Tensor, "1 3 S S"], size_hw: Int[Tensor, "1 2"]) -> Float[Tensor, "1 E h w"]:
        return self.sam.encode_images(image, size_hw)


def write_encoder(sam: Sam, path: Path, metadata: Mapping[str, str]) -> None:
    """Write encoder.onnx; weights that are too large for one file are written to `<name>.data` in the same folder.

    metadata: key-value pairs that are stored in the model.
    """
    image = torch.zeros(1, 3, sam.image_size, sam.image_size, dtype=torch.uint8)
    size_hw = torch.tensor([[sam.image_size, sam.image_size]])
    weights = sum(p.numel() * p.element_size() for p in sam.image_encoder.parameters())
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):  # they log every node
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter calls deprecated functions of torch
        torch.onnx.export(
            _Encoder(sam).eval(),
            (image, size_hw),
            path,
            input_names=["image", "size_hw"],
            output_names=["image_embeddings"],
            opset_version=OPSET,
            dynamo=True,
            external_data=weights > 0.9 * PROTOBUF_LIMIT,
            verbose=False,
        )
    model = onnx.load(path, load_external_data=False)
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
