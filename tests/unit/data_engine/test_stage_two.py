"""sam-engine stage=semi_automatic with a proposer: its masks are shown to the annotator, and the shard says which were kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_sample
from hydra import compose, initialize_config_dir
from server_fixtures import write_nano_checkpoint, write_permissive_proposer

from data_engine.engine import run_stage
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.model import Sam
from sam_train.shards import iterate_samples, load_manifest, write_shard


def test_proposer_replaces_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = write_nano_checkpoint(tmp_path / "model.pt")
    write_shard(tmp_path / "shards" / "sa_000000.tar", [make_sample(index, num_masks=2) for index in range(2)])
    proposals = write_permissive_proposer(Path("proposer.pt"), checkpoint, "stage.generator")
    wanted = [
        "stage=semi_automatic", f"source={tmp_path / 'shards'}", f"checkpoint={checkpoint}", "out=out", "privacy=none",
        "report=false", "threads=1", "stage.annotator.max_clicks=1",
    ]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        config = compose("engine", overrides=[*wanted, *proposals])
        without = compose("engine", overrides=[*wanted, proposals[0]])
    encoded: list[int] = []
    encode = Sam.encode_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Sam, "encode_images", lambda model, images, sizes: encoded.append(len(images)) or encode(model, images, sizes)
        )
        run_stage(config)
    assert encoded == [1, 1], "an image is encoded once, for the proposer and for the annotator's clicks"
    (shard,) = (tmp_path / "out").glob("*.tar")
    counts = load_manifest(shard).counts
    assert 2 <= counts["masks_reviewed"] <= 10, "what the proposer found in two images"
    assert counts["masks_prefilled"] + counts["masks_drawn"] + counts["masks_clicked"] == 4
    assert sum(len(sample.record.masks) for sample in iterate_samples([shard])) == 4
    write_permissive_proposer(Path("proposer.pt"), checkpoint)
    (tmp_path / "proposer.pt").write_bytes((tmp_path / "proposer.pt").read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="another"):
        run_stage(config)
    with pytest.raises(ConfigError, match=r"generator\.file"):
        run_stage(without)
