"""An ONNX file on the CPU, checked before it is run. Nothing is ever fetched: a file is there or it is an error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam_train.errors import ConfigError

EXTRA = "pip install 'sam-train[privacy]'"


class OnnxNetwork:
    """One input, run with as many threads as torch has. Goes to another process without its session, which is made anew.

    `model` is the content of `file`, or what was made of it. Raises ConfigError without onnxruntime and for what is no model.
    """

    def __init__(self, file: Path, model: bytes) -> None:
        self.file, self.model = file, model
        self.sha256 = hashlib.sha256(model).hexdigest()
        inputs = self.session().get_inputs()
        if len(inputs) != 1:
            raise ConfigError(f"{file} has {len(inputs)} inputs: expected one, a picture")
        self.input_name, self.input_type = inputs[0].name, inputs[0].type
        self.input_shape: list[int | str | None] = inputs[0].shape

    def session(self) -> Any:
        """The session of this process."""
        if "_session" not in self.__dict__:
            self._session = self._made()
        return self._session

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs. Raises ConfigError when the network does not take such an input."""
        try:
            return self.session().run(None, {self.input_name: pixels})
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise ConfigError(f"{self.file} does not take a picture of {pixels.dtype} {list(pixels.shape)}: {error}") from error

    def _made(self) -> Any:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self.file} is run by onnxruntime, which is not there: {EXTRA}, or privacy=none") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # warnings are about the exporter, not about us
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the CPU to the model
        try:
            return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ConfigError(f"{self.file} is no ONNX model that onnxruntime reads: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}


def read_onnx_file(file: Path) -> bytes:
    """The bytes of an ONNX file. Raises ConfigError when there is none."""
    if not file.is_file():
        raise ConfigError(f"no such detector: {file}. Expected an ONNX file on this machine; none is ever fetched")
    return file.read_bytes()
