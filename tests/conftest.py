"""What all tests share. Shapes and types of sam_train and data_engine are checked while they run (see pyproject.toml)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam_train.model import Sam
from sam_train.model.build import build_sam
from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import encode_rle, mask_to_box_xywh
from sam_train.shards import encode_jpeg, write_shard

ROOT = Path(__file__).resolve().parent.parent


# What waits most comes first, so that no worker is left with it when the others have finished.
ORDER = ("slurm", "integration", "browser", "distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With workers (`make test`) the tests of a file stay together, as they share its fixtures; one worker has the cluster."""

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=place)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("slurm" if place(item) == 0 else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny models: a second thread only waits for the first


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Released weights and data that are too large for the repository: a folder `shared` beside it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' beside the repository (released weights and data sets); it is not there")
    return folder


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Any]:
    """Two rank processes, started on first use; see dist_runner.py."""
    from dist_runner import RankProcesses  # imports the trainer

    ranks = RankProcesses(2)
    yield ranks
    ranks.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of an S3 server on this machine, on which `s3://bucket` is empty."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install '.[s3]'")
    server_of = pytest.importorskip("moto.server", reason="needs moto with flask: pip install '.[dev]'")
    import fsspec

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
        monkeypatch.setitem(fsspec.config.conf, "s3", endpoint)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        if system.exists("bucket"):  # all servers of a process have the same buckets
            system.rm("bucket", recursive=True)
        system.mkdir("bucket")
        yield system
    finally:
        server.stop()


def make_mask(height: int, width: int, index: int) -> np.ndarray:
    """A rectangle for even indices, a disc for odd ones, moved a little by the index."""
    rows, columns = np.mgrid[:height, :width]
    if index % 2 == 0:
        return (rows >= 2 + index) & (rows < height // 2 + index) & (columns >= 3) & (columns < width // 2)
    return (rows - height // 2) ** 2 + (columns - width // 2) ** 2 <= (min(height, width) // 3) ** 2


def make_mask_record(mask: np.ndarray, *, mask_id: int = 1, provenance: Provenance | None = None) -> MaskRecord:
    """The record of an H x W bool mask, measured as SA-1B measures."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    return MaskRecord(
        id=mask_id,
        segmentation=encode_rle(mask),
        bbox=mask_to_box_xywh(mask),
        area=int(mask.sum()),
        predicted_iou=0.9,
        stability_score=0.95,
        crop_box=[0.0, 0.0, float(width), float(height)],
        point_coords=[[float(columns[0]), float(rows[0])]] if len(rows) else [],
        provenance=provenance,
    )


def make_sample(index: int, *, height: int = 48, width: int = 64, num_masks: int = 2) -> tuple[ImageRecord, bytes]:
    """Image `index` and its masks: grey noise with a brighter object under each mask."""
    image = np.random.default_rng(index).integers(60, 100, (height, width, 3)).astype(np.uint8)
    masks = [make_mask(height, width, mask) for mask in range(num_masks)]
    for mask in masks:
        image[mask] += 80
    records = [make_mask_record(mask, mask_id=10 * index + position) for position, mask in enumerate(masks)]
    record = ImageRecord(key=f"sa_{index:06d}", image_id=index, width=width, height=height, masks=records)
    return record, encode_jpeg(image)


def small_sam(*, depth: int = 2, **changes: Any) -> Sam:
    """A model of random weights for what is about parameters and steps, not about masks; its last block is global."""
    numbers = {"image_size": 32, "embed_dim": 16, "num_heads": 2, "window_size": 2, "prompt_dim": 16, "decoder_mlp_dim": 16}
    return build_sam(**{**numbers, "depth": depth, "global_attn_indexes": [depth - 1], **changes})  # type: ignore[arg-type]


@pytest.fixture
def tiny_samples() -> list[tuple[ImageRecord, bytes]]:
    """Three images (landscape, portrait, landscape) with two, one and no masks."""
    return [make_sample(0), make_sample(1, height=64, width=40, num_masks=1), make_sample(2, num_masks=0)]


@pytest.fixture
def tiny_shard(tmp_path: Path, tiny_samples: list[tuple[ImageRecord, bytes]]) -> Path:
    """`tiny_samples` as a finished SA-1B shard."""
    path = tmp_path / "shards" / "sa_000000.tar"
    write_shard(path, tiny_samples)
    return path


@pytest.fixture
def mask_record() -> Callable[..., MaskRecord]:
    """`make_mask_record`, for tests that need records of their own."""
    return make_mask_record


@pytest.fixture
def sample() -> Callable[..., tuple[ImageRecord, bytes]]:
    """`make_sample`, for tests that need samples of their own."""
    return make_sample
