"""Export of a model to ONNX files that run without torch; each file is compared with torch before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from sam_train.errors import ConfigError
from sam_train.inference.export.decoder import ExportOptions, decoder_model
from sam_train.inference.export.encoder import write_encoder
from sam_train.inference.export.parity import TOLERANCES, Parity, check_decoder, check_encoder
from sam_train.model import Sam

__all__ = ["ExportOptions", "ExportedFile", "Parity", "decoder_model", "export_onnx"]

PRECISIONS = tuple(TOLERANCES)


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A file that was written, and the differences of its outputs from torch's."""

    path: Path
    parity: Parity


def export_onnx(
    sam: Sam,
    folder: Path,
    *,
    options: ExportOptions,
    precisions: Sequence[str] = ("fp32",),
    encoder: bool = True,
    checkpoint_sha256: str = "",
) -> list[ExportedFile]:
    """Write decoder.onnx (also decoder_fp16.onnx, decoder_uint8.onnx) and encoder.onnx into `folder`.

    options: switches of the decoder. precisions: the decoders to write, of fp32, fp16 (half the file size, computes in fp32)
    and uint8 (onnxruntime's dynamic quantisation). encoder: write encoder.onnx, too.
    checkpoint_sha256: stored in the metadata of all files, with image_size and precision, so that a program can reject an
        embedding of another checkpoint.

    Files are written to a temporary folder and moved once all of them agree with torch. Raises ConfigError for an unknown
    precision and for `text_input` with a model without text prompts, and CheckpointError if an output differs from torch's
    by more than `parity.TOLERANCES`; nothing is written then.
    """
    if options.text_input and sam.prompt_encoder.text_dim is None:
        raise ConfigError(
            "options.text_input=true needs a model that takes text prompts, and this one does not: train it with text=..."
        )
    if not precisions or set(precisions) - set(PRECISIONS):
        raise ConfigError(f"precisions must be a list of {', '.join(PRECISIONS)}, got {list(precisions)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        temporary = Path(name)
        metadata = {"checkpoint_sha256": checkpoint_sha256, "image_size": str(sam.image_size)}
        parities: dict[str, Parity] = {}
        for precision in dict.fromkeys(precisions):
            path = temporary / ("decoder.onnx" if precision == "fp32" else f"decoder_{precision}.onnx")
            _write_decoder(sam, path, options, precision, metadata)
            parities[path.name] = check_decoder(path, sam, options, precision)
        if encoder:
            write_encoder(sam, temporary / "encoder.onnx", metadata | {"precision": "fp32"})
            parities["encoder.onnx"] = check_encoder(temporary / "encoder.onnx", sam)
        folder.mkdir(exist_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name in parities):  # external weights before their graph
            path.replace(folder / path.name)
    return [ExportedFile(path=folder / name, parity=parity) for name, parity in parities.items()]


def _write_decoder(sam: Sam, path: Path, options: ExportOptions, precision: str, metadata: dict[str, str]) -> None:
    model = decoder_model(sam, options, half=precision == "fp16", metadata=metadata | {"precision": precision})
    if precision == "uint8":  # as in the released script: weights become unsigned bytes here, activations at run time
        quantize_dynamic(model, path, weight_type=QuantType.QUInt8, per_channel=False, reduce_range=False)
    else:
        onnx.save(model, path)
