"""A corpus, a checkpoint and a server for the tests of sam-annotate.

    python tests/server_fixtures.py OVERRIDE...

serves as `sam-annotate` does, but prints {"port": ...} once it listens: on a port that was free.
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
    """A server in a process of its own."""

    url: str
    tokens: dict[str, str]
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """With -9: nothing is put in order."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def write_nano_checkpoint(path: Path, text_dim: int | None = None) -> Path:
    """Random weights of the smallest model. text_dim: numbers in the embeddings of the words that it takes, None for no words."""
    torch.manual_seed(0)
    config = OmegaConf.to_container(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml")) | {"text_dim": text_dim}
    save_checkpoint(path, build(config), config, {})
    return path


def write_permissive_proposer(path: Path, checkpoint: Path, place: str = "proposals") -> list[str]:
    """A proposer of random weights for the model of `checkpoint`; the overrides with which, at this place in a config, it
    proposes five masks an image."""
    torch.manual_seed(0)
    model = load_checkpoint(checkpoint)
    save_proposer(path, Proposer(embedding_dim=model.image_embedding_dim, width=16), model, {})
    anything = ["score_thresh=0", "pred_iou_thresh=-100", "stability_score_thresh=-1", "mask_nms_thresh=1", "box_nms_thresh=1"]
    return [f"generator@{place}=proposer", *(f"{place}.{value}" for value in [f"file={path}", *anything, "max_boxes=5"])]


def permissive_text_generator(folder: Path, words: Sequence[str]) -> list[str]:
    """A CLIP of random weights in `folder`; the overrides with which a model that takes its embeddings proposes a mask for each
    word, if it has a pixel."""
    clip = ["text_encoder@proposals.encoder=clip", f"proposals.encoder.model={write_tiny_clip(folder)}"]
    anything = ["proposals.pred_iou_thresh=-100", "proposals.stability_score_thresh=-1"]
    return ["generator@proposals=text_prompts", f"proposals.text_prompts=[{','.join(words)}]", *clip, *anything]


@contextmanager
def run_server(out: Path, *overrides: str) -> Iterator[Server]:
    """A server over `out`, which may have been there before; gone when the block ends."""
    command = [sys.executable, __file__, f"out={out}", "privacy=none", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the server ended before it listened"
            tokens = {name: entry["token"] for name, entry in json.loads((out / "tokens.json").read_bytes()).items()}
            yield Server(url=f"http://127.0.0.1:{json.loads(line)['port']}", tokens=tokens, process=process)
        finally:
            process.kill()


def main(overrides: Sequence[str]) -> None:
    import uvicorn

    from data_engine import annotate

    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("annotate", overrides=list(overrides))
    with Path(os.devnull).open("w") as nowhere:
        annotate.console.file = nowhere
        app, context, _ = annotate.create_application(config)
    if context.embedding_service is not None:
        assert context.embedding_service.decoder_onnx is not None
    asked = next((int(override.partition("=")[2]) for override in overrides if override.startswith("port=")), 0)
    listening = socket.create_server(("127.0.0.1", asked))
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listening])


if __name__ == "__main__":
    main(sys.argv[1:])
