"""Sharded checkpoints: round trip, atomic replacement, and rejection of corrupt or malicious tensor folders."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from sam_train.checkpoint.sharded import TENSOR_FOLDER_KEY
from sam_train.errors import CheckpointError
from sam_train.training.checkpoint_io import AtomicCheckpointIO, save_sharded

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process writes

CHECKPOINT: dict[str, Any] = {
    "state_dict": {"model.a": torch.arange(6.0).reshape(2, 3), "model.b": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer_states": [
        {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}, "param_groups": [{"lr": 0.1}]}
    ],
    "loops": {"betas": (0.9, 0.999), "count": 7},
}


@pytest.fixture
def last(tmp_path: Path) -> Path:
    save_sharded(CHECKPOINT, tmp_path / "last.ckpt", "step-3-a", is_rank_zero=True)
    return tmp_path / "last.ckpt"


def load(path: Path) -> dict[str, Any]:
    return AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


def test_round_trip(last: Path) -> None:
    loaded = load(last)
    assert loaded.pop(TENSOR_FOLDER_KEY) == "step-3-a"
    assert loaded.keys() == CHECKPOINT.keys()
    assert loaded["loops"] == CHECKPOINT["loops"]
    for name, tensor in CHECKPOINT["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)
        assert loaded["state_dict"][name].dtype == tensor.dtype
    moments = loaded["optimizer_states"][0]["state"][0]
    assert all(torch.equal(moments[n], t) for n, t in CHECKPOINT["optimizer_states"][0]["state"][0].items())


def test_replaces_the_previous_checkpoint_and_ignores_an_incomplete_one(last: Path) -> None:
    (last.parent / "step-9-incomplete").mkdir()  # left by a kill during a write
    assert load(last)["loops"]["count"] == 7
    save_sharded({**CHECKPOINT, "loops": {"count": 8}}, last, "step-4-b", is_rank_zero=True)
    assert load(last)["loops"]["count"] == 8
    assert [path.name for path in last.parent.glob("step-*")] == ["step-4-b"]
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, last)
    assert list(last.parent.glob("step-*")) == []


@pytest.mark.parametrize("damaged", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_reports_an_incomplete_folder(last: Path, damaged: str, is_missing: bool) -> None:
    file = last.parent / "step-3-a" / damaged
    if is_missing:
        file.unlink()
    else:
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-3-a, the tensor folder of .*last.ckpt, is missing, incomplete or corrupt"):
        load(last)


def test_rejects_a_folder_outside_the_checkpoints(last: Path) -> None:
    document = torch.load(last, weights_only=True)
    torch.save({**document, TENSOR_FOLDER_KEY: "../elsewhere"}, last)
    with pytest.raises(CheckpointError, match=r"'../elsewhere' as its tensor folder"):
        load(last)


class RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_rejects_metadata_that_would_run_code(last: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metadata_file = last.parent / "step-3-a" / ".metadata"
    metadata = FileSystemReader(metadata_file.parent).read_metadata()
    metadata_file.write_bytes(pickle.dumps([metadata, RunsCode()]))
    with pytest.raises(CheckpointError, match=r"its metadata contains (posix|nt|os).mkdir"):
        load(last)
    assert not Path("ran").exists()


def test_rejects_metadata_that_names_files_outside_the_folder(last: Path) -> None:
    metadata_file = last.parent / "step-3-a" / ".metadata"
    metadata = FileSystemReader(metadata_file.parent).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = "../../other"
    metadata_file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"names a file outside the folder, '../../other'"):
        load(last)
