"""Cache of remote shards: bounded size, atomic and checked downloads, several processes; with a real S3 server (moto) and a real
HTTP server on this machine."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sam_train.data.datamodule import ShardDataModule
from sam_train.errors import ConfigError, ShardError
from sam_train.records import ImageRecord
from sam_train.shards import manifest_path, write_shard
from sam_train.shards.cache import ShardCache
from sam_train.shards.index import ShardIndex, read_sample
from sam_train.shards.remote import expand_local_and_remote

MakeSample = Callable[..., tuple[ImageRecord, bytes]]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
GB = 10**9


@pytest.fixture
def shards(tmp_path: Path, sample: MakeSample) -> list[Path]:
    """Three shards of two images each."""
    paths = [tmp_path / "there" / f"sa_{number:06d}.tar" for number in range(3)]
    for number, path in enumerate(paths):
        write_shard(path, [sample(2 * number), sample(2 * number + 1)])
    return paths


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def url(shards: list[Path]) -> Iterator[str]:
    """URL of the shards on an HTTP server."""
    handler = functools.partial(Quiet, directory=str(shards[0].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("_")[2] for path in folder.glob("*.tar"))


def keys_of(index: ShardIndex | ShardError, cache: ShardCache) -> list[str]:
    assert isinstance(index, ShardIndex), index
    return [read_sample(entry, cache.open).record.key for entry in index]


def test_loader_reads_the_same_batches_from_a_url_and_a_folder(url: str, shards: list[Path], tmp_path: Path) -> None:
    far = ShardDataModule(shards=f"{url}/sa_{{000000..000002}}.tar", image_size=32, cache_dir=str(tmp_path / "cache"))
    near = ShardDataModule(shards=str(shards[0].parent), image_size=32)
    assert names(tmp_path / "cache") == [], "the index comes from the manifests"
    assert [far.train_set[p].key for p in range(12)] == [near.train_set[p].key for p in range(12)]
    assert names(tmp_path / "cache") == [path.name for path in shards]


def test_downloads_the_tar_to_index_a_shard_without_a_manifest(url: str, shards: list[Path], tmp_path: Path) -> None:
    manifest_path(shards[0]).unlink()
    cache = ShardCache(tmp_path / "cache", GB)
    (index,) = cache.index([f"{url}/{shards[0].name}"])
    assert names(cache.folder) == [shards[0].name]
    assert keys_of(index, cache) == ["sa_000000", "sa_000001"]


def test_deletes_the_least_recently_used_shard(url: str, shards: list[Path], tmp_path: Path) -> None:
    size = shards[0].stat().st_size
    cache = ShardCache(tmp_path / "cache", 2 * size + size // 2)
    first, second, third = cache.index([f"{url}/{path.name}" for path in shards])
    for index in (first, second, first, third):
        assert keys_of(index, cache)
        time.sleep(0.02)  # some file systems store times in milliseconds
    assert names(cache.folder) == [shards[0].name, shards[2].name]
    assert keys_of(second, cache) == ["sa_000002", "sa_000003"], "and is downloaded again on demand"
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.max_bytes


def test_rejects_a_shard_larger_than_the_cache(url: str, shards: list[Path], tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1000)
    (index,) = cache.index([f"{url}/{shards[0].name}"])
    with pytest.raises(ShardError, match=r"do not fit into a cache of 1000: raise data.cache_gb"):
        keys_of(index, cache)
    assert names(cache.folder) == []


@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_rejects_and_deletes_a_download_that_does_not_match_its_manifest(
    url: str, shards: list[Path], tmp_path: Path, damage: str
) -> None:
    data = bytearray(shards[0].read_bytes())
    data[600] ^= 255
    shards[0].write_bytes(bytes(data) if damage == "other" else bytes(data[:3000]))
    cache = ShardCache(tmp_path / "cache", GB)
    (index,) = cache.index([f"{url}/{shards[0].name}"])
    with pytest.raises(ShardError, match=r"upload (it|the shard) again") as caught:
        keys_of(index, cache)
    assert caught.value.shard.startswith("http")
    assert [path.name for path in cache.folder.iterdir() if not path.name.endswith("lock")] == []


def test_skips_a_missing_shard(url: str, shards: list[Path], tmp_path: Path) -> None:
    wanted = [f"{url}/{shards[0].name}", f"{url}/absent.tar"]
    module = ShardDataModule(shards=wanted, image_size=32, cache_dir=str(tmp_path / "cache"))
    assert module.train_set.shards.num_images == 2
    assert "absent.tar" in module.train_set.shards.skipped_reasons[0]
    with pytest.raises(ShardError, match="cannot be fetched"):
        ShardDataModule(shards=wanted, image_size=32, cache_dir=str(tmp_path / "cache"), strict=True)


def fetch_all(url: str, files: list[str], folder: Path, max_bytes: int, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    cache = ShardCache(folder, max_bytes)
    found = cache.index([f"{url}/{name}" for name in files])
    answers.put([keys_of(index, cache) for _ in range(5) for index in found])


def test_several_processes_share_the_cache_folder(url: str, shards: list[Path], tmp_path: Path) -> None:
    """The cache has room for two of three shards, so that each process deletes shards that others are about to read."""
    size = shards[0].stat().st_size
    context, processes = multiprocessing.get_context("spawn"), []
    answers = context.Queue()
    for _ in range(3):
        arguments = (url, [path.name for path in shards], tmp_path / "cache", 2 * size + 100, answers)
        processes.append(context.Process(target=fetch_all, args=arguments))
        processes[-1].start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(20)
    assert found == [[[f"sa_{2 * n:06d}", f"sa_{2 * n + 1:06d}"] for n in range(3)] * 5] * 3
    assert len(names(tmp_path / "cache")) <= 2


def test_reads_shards_from_s3(shards: list[Path], bucket: Any, tmp_path: Path) -> None:
    for path in shards[0].parent.iterdir():
        bucket.put_file(str(path), f"bucket/folder/{path.name}")
    expected = [f"s3://bucket/folder/{path.name}" for path in shards]
    for pattern in ("s3://bucket/folder", "s3://bucket/folder/sa_*.tar", "s3://bucket/folder/sa_{000000..000002}.tar"):
        assert expand_local_and_remote(pattern) == expected
    with pytest.raises(ConfigError, match="no shard matches"):
        expand_local_and_remote("s3://bucket/elsewhere")
    far = ShardDataModule(shards="s3://bucket/folder", image_size=32, cache_dir=str(tmp_path / "cache"))
    near = ShardDataModule(shards=str(shards[0].parent), image_size=32)
    assert [far.train_set[p].key for p in range(6)] == [near.train_set[p].key for p in range(6)]


def test_rejects_an_unsupported_protocol(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ShardDataModule(shards="nowhere://a/b.tar", image_size=32, cache_dir=str(tmp_path / "cache"))
    assert os.listdir(tmp_path) in ([], ["cache"])
