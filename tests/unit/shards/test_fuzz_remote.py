"""Servers with wrong responses: too short, too long, a page instead of a tar, other bytes than requested, or no response.

The result is the original shard, or an error that names the shard: in bounded time, and without a truncated copy in the cache.
"""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fuzzing import SAMPLES, TAR_MUTATIONS, mutate_json, num_cases, seeded_random

from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import ConfigError, ShardError
from sam_train.shards import manifest_path, write_shard
from sam_train.shards.cache import ShardCache
from sam_train.shards.index import ShardIndex, read_sample

NUM_CASES = num_cases(in_full=1000)
MAX_SECONDS_A_CASE, CACHE_BYTES = 20.0, 1 << 20
PAGE = b"<!DOCTYPE html><html><body><h1>Sign in to the network</h1></body></html>"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@dataclass(slots=True)
class Answer:
    """Response of the server; `Handler` applies the faults."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""


KINDS = (
    *(["true"] * 24 + ["mutated"] * 6 + ["short"] * 3 + ["other_range"] * 2),
    *("page", "empty", "missing", "forbidden", "broken", "busy", "long", "unsaid", "no_head", "no_ranges", "wrong_total"),
    *("not_gzip", "loop", "elsewhere", "hang_up", "garbage", "huge", "negative"),
)
STATUS = {"missing": 404, "forbidden": 403, "broken": 500, "busy": 503}


def kinds_of(case: int) -> tuple[str, str]:
    """Faults of the responses for the tar and for its manifest."""
    rng = seeded_random(case)
    return rng.choice(KINDS), rng.choice(KINDS)


def answer_of(case: int, name: str, whole: bytes) -> Answer:
    """Return the same bytes at every request of a case."""
    rng, kind = seeded_random(case + 1), kinds_of(case)[name.endswith(".json")]
    if kind == "mutated":
        return Answer(mutated(name, whole, rng))
    if kind in STATUS:
        return Answer(b"no", STATUS[kind])
    if kind in ("loop", "elsewhere"):
        there = f"/{case}/{name}" if kind == "loop" else "file:///etc/passwd"
        return Answer(b"", 302, {"Location": there})
    if kind == "not_gzip":
        return Answer(whole, headers={"Content-Encoding": "gzip"})
    return Answer({"page": PAGE, "empty": b""}.get(kind, whole), fault=kind)


def mutated(name: str, whole: bytes, rng: random.Random) -> bytes:
    if name.endswith(".json"):
        return mutate_json(json.loads(whole), rng)
    return rng.choice(TAR_MUTATIONS)(whole, rng)


class Handler(http.server.BaseHTTPRequestHandler):
    """HTTP server with ranges and sizes, except for the fault of the case."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        _, case, name = self.path.split("/")
        answer = answer_of(int(case), name, self.files[name]) if int(case) else Answer(self.files[name])
        if answer.fault == "hang_up":
            self.close_connection = True
            return
        if answer.fault == "garbage":
            self.wfile.write(bytes(range(256)) * 4)
            self.close_connection = True
            return
        if answer.fault == "no_head" and not with_body:
            answer = Answer(b"", 405)
        self._send(answer, self._part_of(answer), with_body=with_body)

    def _part_of(self, answer: Answer) -> bytes:
        """Return the requested bytes; write the status and headers of a partial response."""
        asked, whole = self.headers.get("Range", ""), answer.body
        if not asked.startswith("bytes=") or answer.status != 200 or answer.fault == "no_ranges":
            return whole
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or len(whole)), len(whole) - 1)
        total = 10**12 if answer.fault == "wrong_total" else len(whole)
        if start >= len(whole):
            answer.status = 416
            return b""
        answer.status = 206
        answer.headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        part = whole[start : end + 1]
        return part[::-1] if answer.fault == "other_range" else part

    def _send(self, answer: Answer, part: bytes, *, with_body: bool) -> None:
        said = {"short": len(part) + 999, "long": len(part) // 2, "huge": 10**18, "negative": -5}.get(answer.fault, len(part))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        if answer.fault != "unsaid":
            self.send_header("Content-Length", str(said))
        if answer.fault in ("unsaid", "short", "long", "huge", "negative"):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A shard of three images and its manifest, by name."""
    shard = tmp_path_factory.mktemp("there") / "a.tar"
    write_shard(shard, SAMPLES)
    return {path.name: path.read_bytes() for path in (shard, manifest_path(shard))}


@pytest.fixture(scope="module")
def url(files: dict[str, bytes]) -> Iterator[str]:
    """URL of the server: /CASE/NAME, where case 0 has no fault."""
    handler = type("Served", (Handler,), {"files": files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(autouse=True)
def _silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def read_all(address: str, folder: Path) -> list[str] | ShardError | ConfigError:
    """Return the keys of all samples that are read, or the error."""
    cache = ShardCache(folder, CACHE_BYTES)
    (index,) = cache.index([address])
    if not isinstance(index, ShardIndex):
        return index
    try:
        return [read_sample(entry, cache.open).record.key for entry in index]
    except (ShardError, ConfigError) as error:
        return error


def test_wrong_responses_are_rejected(url: str, files: dict[str, bytes], tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for case in range(1, NUM_CASES + 1):
        folder, start = tmp_path / str(case), time.monotonic()
        of_tar, of_manifest = kinds_of(case)
        where = f"case {case}: tar {of_tar}, manifest {of_manifest}"
        try:
            found = read_all(f"{url}/{case}/a.tar", folder)
        except Exception as error:
            pytest.fail(f"{where}: {type(error).__name__}: {error}", pytrace=True)
        assert time.monotonic() - start < MAX_SECONDS_A_CASE, where
        copies = [path for path in folder.iterdir() if not path.name.endswith(".lock")]
        assert [path.suffix for path in copies] in ([], [".tar"]), f"{where}: {copies}"
        if isinstance(found, list):
            assert found == [record.key for record, _ in SAMPLES] or "mutated" in (of_tar, of_manifest), where
        else:
            assert f"/{case}/a.tar" in str(found) or "_a.tar" in str(found), f"{where}: which shard? {found}"
        if of_manifest == "true":
            assert [path.read_bytes() for path in copies] in ([], [files["a.tar"]]), f"{where}: a copy that is not the shard"
        outcomes["read" if isinstance(found, list) else "refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > NUM_CASES / 5, outcomes


def test_loader_skips_shards_that_a_server_corrupts(url: str, tmp_path: Path) -> None:
    """The corrupted shard, beside an intact one, is skipped by name or read."""
    for case in range(1, NUM_CASES // 10):
        names = [f"{url}/0/a.tar", f"{url}/{case}/a.tar"]
        where = f"case {case}: {kinds_of(case)}"
        try:
            loader = ShardDataModule(shards=names, image_size=32, cache_dir=str(tmp_path / str(case)), cache_gb=0.001)
            samples = [loader.train_set[position] for position in range(6)]
        except Exception as error:
            pytest.fail(f"{where}: {type(error).__name__}: {error}", pytrace=True)
        assert {sample.key for sample in samples} <= {record.key for record, _ in SAMPLES} or "mutated" in kinds_of(case), where
        assert all(reason for sample in samples for reason in sample.skipped)
