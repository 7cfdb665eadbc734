"""The table of masks has the annotator, model and prompts of every mask in every finished shard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb
import pytest
from conftest import make_sample
from omegaconf import OmegaConf

from data_engine.commands import cycle as main
from data_engine.cycle.ablation import SETS, results_table
from data_engine.cycle.provenance_table import write_provenance_table
from data_engine.cycle_folder import CycleFolder
from sam_train.records import ImageRecord, Provenance
from sam_train.shards import write_shard

STEPS = ["1_assisted_manual", "2_semi_automatic"]


def sample(index: int, provenance: Provenance | None) -> tuple[ImageRecord, bytes]:
    """Return image `index` with two masks of this provenance."""
    record, jpeg = make_sample(index)
    masks = [
        type(mask)(**{name: getattr(mask, name) for name in mask.__slots__} | {"provenance": provenance}) for mask in record.masks
    ]
    return ImageRecord(key=record.key, image_id=index, width=record.width, height=record.height, masks=masks), jpeg


def provenance(checkpoint: str, annotator: str, prompts: list[list[float]]) -> Provenance:
    return Provenance(stage="s", checkpoint=checkpoint, annotator=annotator, config="c", prompts=prompts, seconds=3.0)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    drawn, clicked = provenance("", "ann", []), provenance("f" * 64, "bob", [[1.0, 2.0, 1.0], [3.0, 4.0, 0.0]])
    generated, foreign = provenance("f" * 64, "automatic", [[5.0, 6.0, 1.0]]), provenance("e" * 64, "bob", [])
    write_shard(tmp_path / STEPS[0] / "shards" / "sa_000000.tar", [sample(0, drawn)])
    write_shard(tmp_path / STEPS[1] / "shards" / "sa_000000.tar", [sample(1, clicked), sample(2, generated)])
    write_shard(tmp_path / STEPS[1] / "shards" / "sa_000001.tar", [sample(3, foreign), sample(4, None)])
    (tmp_path / STEPS[1] / "shards" / "sa_000002.tar").write_bytes(b"a shard that is being written")
    history = [{"step": STEPS[0], "sha256": "f" * 64, "promoted": True, "checkpoint": "x", "evaluation": {}}]
    history += [{**history[0], "rolled_back_from": STEPS[1], "because": "it hates cats"}]
    (tmp_path / "promoted.json").write_text(json.dumps({"checkpoint": "x", "sha256": "f" * 64, "history": history}))
    stages = [{"stage": step[2:], "num_images": 1} for step in STEPS]
    OmegaConf.save(OmegaConf.create({"corpus": {"ground_truth": "t"}, "stages": stages}), tmp_path / "config.yaml")
    return tmp_path


def test_writes_one_row_per_mask(run_dir: Path) -> None:
    write_provenance_table(run_dir / "masks.parquet", CycleFolder(run_dir), STEPS)
    masks = duckdb.read_parquet(f"{run_dir}/masks.parquet")
    columns = "step, image_key, annotator, model_step, prompts, seconds"
    rows = masks.aggregate(f"{columns}, count(*)", columns).order("image_key").fetchall()
    assert rows == [
        (STEPS[0], "sa_000000", "ann", "", [], 3.0, 2),
        (STEPS[1], "sa_000001", "bob", STEPS[0], [[1.0, 2.0, 1.0], [3.0, 4.0, 0.0]], 3.0, 2),
        (STEPS[1], "sa_000002", "automatic", STEPS[0], [[5.0, 6.0, 1.0]], 3.0, 2),
        (STEPS[1], "sa_000003", "bob", "e" * 12, [], 3.0, 2),
        (STEPS[1], "sa_000004", "", "", [], 0.0, 2),
    ]
    ids = masks.project("mask_id").fetchall()
    assert sorted(ids) == [(10 * index + mask,) for index in range(5) for mask in range(2)]


def test_prints_a_summary_and_the_decisions(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-cycle", "ledger", f"run={run_dir}"])
    main()
    printed = capsys.readouterr().out
    assert "masks.parquet: 10 masks" in printed
    assert "rolled back to the model of 1_assisted_manual from that of 2_semi_automatic: it hates cats" in printed
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith(("1_", "2_"))]
    assert ["1_assisted_manual", "ann", "none", "2", "0.00", "3.0"] in lines
    assert ["2_semi_automatic", "bob", "1_assisted_manual", "2", "2.00", "3.0"] in lines


def test_prints_the_masks_of_one_image(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-cycle", "ledger", f"run={run_dir}", "image=sa_000001"])
    main()
    assert "1,2,1 3,4,0" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sam-cycle", "ledger", f"run={run_dir}", "image=sa_999999"])
    with pytest.raises(SystemExit):
        main()
    assert "no mask of an image 'sa_999999' was written" in capsys.readouterr().err


def test_ablation_has_the_sets_of_the_paper() -> None:
    assert list(SETS.values()) == [
        ("assisted_manual",),
        ("assisted_manual", "semi_automatic"),
        ("assisted_manual", "semi_automatic", "fully_automatic"),
        ("fully_automatic",),
    ]
    table = results_table({"manual": {"miou_at_1": 0.5}, "all": {"miou_at_1": 0.75, "miou_at_3": 0.8}})
    assert table.row_count == 2
    assert list(table.columns[1].cells) == ["0.500", "0.750"]
    assert list(table.columns[2].cells) == ["", "0.800"]
