"""Inference of an ONNX file on the CPU. Nothing is ever downloaded: a missing file is an error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_train.errors import ConfigError, install_extra

EXTRA = install_extra("privacy")


class OnnxNetwork:
    """An ONNX network with one input, run with as many threads as torch uses.

    It can be pickled; the session is then created again in the other process.

    model: the bytes of `file`, possibly modified. Raises ConfigError if onnxruntime is missing or the bytes are not a model.
    """

    def __init__(self, file: Path, model: bytes) -> None:
        self.file, self.model = file, model
        self.sha256 = hashlib.sha256(model).hexdigest()
        inputs = self.session().get_inputs()
        if len(inputs) != 1:
            raise ConfigError(f"{file} has {len(inputs)} inputs: expected one, an image")
        self.input_name, self.input_type = inputs[0].name, inputs[0].type
        self.input_shape: list[int | str | None] = inputs[0].shape

    def session(self) -> Any:
        """Return the session of this process, created at the first call."""
        if "_session" not in self.__dict__:
            self._session = self._create_session()
        return self._session

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return all outputs. Raises ConfigError if the network rejects the input."""
        try:
            return self.session().run(None, {self.input_name: pixels})
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ConfigError(f"{self.file} does not accept an image of {pixels.dtype} {list(pixels.shape)}: {error}") from error

    def _create_session(self) -> Any:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self.file} needs onnxruntime, which is not installed: {EXTRA}, or privacy=none") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings concern the exporter only
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # idle threads must not take CPU time from the model
        try:
            return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ConfigError(f"{self.file} is not an ONNX model that onnxruntime can read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}


def read_onnx_file(file: Path) -> bytes:
    """Return the bytes of an ONNX file. Raises ConfigError if it does not exist."""
    if not file.is_file():
        raise ConfigError(f"no such detector: {file}. Expected an ONNX file on this machine; files are never downloaded")
    return file.read_bytes()
