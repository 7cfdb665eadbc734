"""Weights are downloaded once, resumed after an interruption, and refused if they are not the expected file."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_train.checkpoint import export_weights, load_checkpoint
from sam_train.errors import CheckpointError
from sam_train.inference import load_predictor
from sam_train.model.build import build_sam
from sam_train.weights import NAMED_WEIGHTS, names
from sam_train.weights.download import cache_folder, download
from sam_train.weights.names import DownloadedWeights

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Serves `content` at every path, in parts if a range is requested."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.supports_ranges = True
        self.breaks_after: int | None = None
        """Bytes of a response after which the connection is closed."""
        self.requested: list[str | None] = []
        """Range header of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.requested.append(requested)
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and self.server.supports_ranges else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_after])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: FileServer, folder: Path) -> Path:
    return download(server.url, folder / "weights.pth", sha256=SHA256, num_bytes=len(CONTENT), notice="licence X")


def test_downloads_once_with_progress_and_licence(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(server, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    printed = capsys.readouterr().err
    assert f"downloading {server.url} to {path}\nlicence X\n" in printed
    assert "100 % of 5 MB" in printed
    assert fetch(server, tmp_path / "cache") == path
    assert server.requested == [None]
    assert not path.with_name("weights.pth.part").exists()


@pytest.mark.parametrize("supports_ranges", [True, False])
def test_a_truncated_download_is_resumed(server: FileServer, tmp_path: Path, supports_ranges: bool) -> None:
    server.supports_ranges, server.breaks_after = supports_ranges, 3_000_000
    with pytest.raises(CheckpointError, match=r"ended after 3,000,000 of 5,120,000 bytes: start the same command again"):
        fetch(server, tmp_path)
    assert not (tmp_path / "weights.pth").exists()
    server.breaks_after = None
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=3000000-"]


def test_a_wrong_hash_or_size_is_refused_and_removed(server: FileServer, tmp_path: Path) -> None:
    for content in (CONTENT[:-1] + b"x", CONTENT + b"more"):
        server.content = content
        with pytest.raises(CheckpointError, match=rf"is not the expected file: .* expected 5,120,000 bytes with {SHA256}"):
            fetch(server, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["weights.pth.lock"]
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_part_of_another_file_is_refused_then_downloaded_anew(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(b"other" * 10)
    with pytest.raises(CheckpointError, match="is not the expected file"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_without_a_network_the_message_names_the_address_and_the_place(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/weights.pth"
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(.*Connection refused\): .* and put it at") as error:
        download(url, tmp_path / "weights.pth", sha256=SHA256, num_bytes=len(CONTENT))
    assert url in str(error.value)
    assert str(tmp_path / "weights.pth") in str(error.value)


def test_a_file_of_another_size_in_the_cache_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"by hand")
    with pytest.raises(CheckpointError, match=r"weights\.pth has 7 bytes, but .* has 5,120,000: remove it"):
        fetch(server, tmp_path)


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("SAM_TRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "sam_train" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sam_train" / "weights"
    monkeypatch.setenv("SAM_TRAIN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "weights"


def test_a_downloaded_name_is_a_checkpoint(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_sam(image_size=64, embed_dim=24, depth=2, num_heads=3, global_attn_indexes=[1], window_size=3, prompt_dim=32)
    export_weights(model.eval(), tmp_path / "weights.pth")
    server.content = (tmp_path / "weights.pth").read_bytes()
    weights = DownloadedWeights(
        url=server.url,
        num_bytes=len(server.content),
        sha256=hashlib.sha256(server.content).hexdigest(),
        licence="Apache-2.0",
        description="a small model",
    )
    monkeypatch.setattr(names, "NAMED_WEIGHTS", {"small": weights})
    monkeypatch.setenv("SAM_TRAIN_CACHE", str(tmp_path / "cache"))
    state = load_predictor("small").model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert load_checkpoint("small").image_size == 64
    assert server.requested == [None]


def test_every_registered_file_has_an_address_a_hash_and_a_licence() -> None:
    downloaded = {name: weights for name, weights in NAMED_WEIGHTS.items() if isinstance(weights, DownloadedWeights)}
    assert set(downloaded) == {"mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h"}
    for weights in downloaded.values():
        assert weights.url.startswith("https://")
        assert len(weights.sha256) == 64
        assert int(weights.sha256, 16) > 0
        assert weights.num_bytes > 10_000_000
        assert "Apache-2.0 (https://" in weights.licence
