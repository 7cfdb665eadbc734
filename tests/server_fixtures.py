"""Checkpoints, mask generators and a server process for the tests of sam-annotate.

    python tests/server_fixtures.py OVERRIDE...

serves as `sam-annotate` does, on a free port, and prints {"port": ...} once it listens.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tiny_clip import write_tiny_clip

from sam_train.checkpoint import load_checkpoint, save_checkpoint
from sam_train.config import build, config_dir
from sam_train.inference.box_mask_generator import save_proposer
from sam_train.model.proposer import Proposer


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server process."""

    url: str
    tokens: dict[str, str]
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """Kill the process with SIGKILL, so that it cannot clean up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def write_nano_checkpoint(path: Path, text_dim: int | None = None) -> Path:
    """Write a checkpoint of the smallest model with random weights. text_dim: text embedding dimensions, None: no text."""
    torch.manual_seed(0)
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml")) | {"text_dim": text_dim}
    save_checkpoint(path, build(config), config, {})
    return path


def write_permissive_proposer(path: Path, checkpoint: Path, config_key: str = "proposals") -> list[str]:
    """Write a proposer with random weights for a model and return overrides with which it proposes five masks per image.

    config_key: dotted key of the generator in the config.
    """
    torch.manual_seed(0)
    model = load_checkpoint(checkpoint)
    save_proposer(path, Proposer(embedding_dim=model.image_embedding_dim, width=16), model, {})
    thresholds = ["score_thresh=0", "pred_iou_thresh=-100", "stability_score_thresh=-1", "mask_nms_thresh=1", "box_nms_thresh=1"]
    return [
        f"generator@{config_key}=proposer",
        *(f"{config_key}.{value}" for value in [f"file={path}", *thresholds, "max_boxes=5"]),
    ]


def permissive_text_generator(folder: Path, text_prompts: Sequence[str]) -> list[str]:
    """Write a CLIP with random weights and return overrides that propose every non-empty mask of each text prompt."""
    clip = ["text_encoder@proposals.encoder=clip", f"proposals.encoder.model={write_tiny_clip(folder)}"]
    thresholds = ["proposals.pred_iou_thresh=-100", "proposals.stability_score_thresh=-1"]
    return ["generator@proposals=text_prompts", f"proposals.text_prompts=[{','.join(text_prompts)}]", *clip, *thresholds]


@contextmanager
def run_server(out: Path, *overrides: str) -> Iterator[Server]:
    """Run a server on a new or existing output folder until the block ends."""
    command = [sys.executable, __file__, f"out={out}", "privacy=none", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the server exited before it listened"
            tokens = {name: entry["token"] for name, entry in json.loads((out / "tokens.json").read_bytes()).items()}
            yield Server(url=f"http://127.0.0.1:{json.loads(line)['port']}", tokens=tokens, process=process)
        finally:
            process.kill()


def main(overrides: Sequence[str]) -> None:
    import uvicorn

    from data_engine import annotate

    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("annotate", overrides=list(overrides))
    with Path(os.devnull).open("w") as devnull:
        annotate.console.file = devnull
        app, context, _ = annotate.create_application(config)
    if context.embedding_service is not None:
        assert context.embedding_service.decoder_onnx is not None
    port = next((int(override.partition("=")[2]) for override in overrides if override.startswith("port=")), 0)
    listener = socket.create_server(("127.0.0.1", port))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])


if __name__ == "__main__":
    main(sys.argv[1:])
