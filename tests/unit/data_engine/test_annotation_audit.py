"""Audit of automatic masks (paper, section 5): two simulated annotators correct a random sample over HTTP; the summary reports
the errors that the fixture put into the masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_mask_record, make_sample
from hydra import compose, initialize_config_dir
from server_fixtures import run_server

from data_engine import annotate
from data_engine.annotation_tool.backend.client import AnnotationClient
from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.simulated_client import SimulatedClient
from data_engine.annotation_tool.backend.summary import summarize
from data_engine.annotators import SimulatedAnnotator
from data_engine.sources import open_source
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.records import Provenance
from sam_train.shards import write_shard

HEIGHT, WIDTH = 60, 80
NUM_ROWS = {"exact": 20, "fair": 18, "poor": 12}
"""Rows of an automatic mask of an object with 20 rows: IoU 1, 0.9 and 0.6. IoU 0.9 is not above 0.90."""


def rectangle(left: int, rows: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10 : 10 + rows, left : left + 15] = True
    return mask


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Path]:
    """Write automatic masks and ground truth of eight images: three objects, and a fourth automatic mask without an object."""
    automatic, ground_truth = [], []
    for index in range(8):
        record, jpeg = make_sample(index, height=HEIGHT, width=WIDTH, num_masks=0)
        other, _ = make_sample(index, height=HEIGHT, width=WIDTH, num_masks=0)
        for number, (name, rows) in enumerate(NUM_ROWS.items()):
            named = Provenance(stage="import", checkpoint="", annotator="x", config="", name=name)
            record.masks.append(make_mask_record(rectangle(20 * number, rows), mask_id=100 * index + number, provenance=named))
            other.masks.append(make_mask_record(rectangle(20 * number, 20), mask_id=100 * index + number))
        no_object = np.zeros((HEIGHT, WIDTH), bool)
        no_object[50:58, 60:75] = True
        record.masks.append(make_mask_record(no_object, mask_id=100 * index + 9))
        automatic.append((record, jpeg))
        ground_truth.append((other, jpeg))
    write_shard(tmp_path / "automatic" / "sa_000000.tar", automatic)
    write_shard(tmp_path / "truth" / "sa_000000.tar", ground_truth)
    return tmp_path / "automatic", tmp_path / "truth"


def test_summary_of_an_audit_is_exact(shards: tuple[Path, Path], tmp_path: Path) -> None:
    overrides = [f"corpus={shards[0]}", "action=audit", "num_audit_images=3", "overlap=2", "annotators=[ann,bob]"]
    image_keys = []
    with run_server(tmp_path / "out", *overrides) as server:
        for name in ("ann", "bob"):
            with AnnotationClient(server.url, server.tokens[name]) as client:
                simulated = SimulatedClient(client, SimulatedAnnotator(accept_iou=0.95), open_source(shards[1]))
                counts = simulated.annotate_images()
                image_keys.append(simulated.image_keys)
                assert (counts["images"], counts["masks_reviewed"], counts["masks_drawn"]) == (3, 12, 6)
                assert counts["seconds"] == 12 * 1.0 + 6 * 34.0, "a wrong proposal costs no time to find the object"
    assert image_keys[0] == image_keys[1]
    assert len(set(image_keys[0])) == 3
    database = Database(tmp_path / "out" / "store.sqlite")
    kept = database.connection.execute("SELECT name, count(*) FROM masks WHERE NOT deleted GROUP BY name").fetchall()
    assert {row[0]: row[1] for row in kept} == dict.fromkeys(NUM_ROWS, 6), "masks keep their names"
    result = summarize(database)
    assert result["corrections"] == {
        "masks": 18, "rejected": 6, "not_reviewed": 0, "above_0.90": 6 / 18, "all_above_0.90": 6 / 24,
        "above_0.75": 12 / 18, "all_above_0.75": 12 / 24,
    }  # fmt: skip
    assert result["agreement"] == {"images": 3, "mean_iou": 1.0, "paired": 1.0}
    assert [row["origins"] for row in result["annotators"]] == [{"accepted": 3, "edited": 6}] * 2


def test_audit_sample_depends_on_the_seed_alone(shards: tuple[Path, Path]) -> None:
    source = open_source(shards[0])
    samples = [[reference.key for reference in annotate.sample_references(source, 4, seed)] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert all(keys == sorted(keys) and len(set(keys)) == 4 for keys in samples)
    assert len(annotate.sample_references(source, 99, 0)) == 8


def test_rejects_an_audit_of_images_without_masks(tmp_path: Path, write_tiny_images: Callable[[Path], Path]) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        overrides = ["action=audit", f"corpus={write_tiny_images(tmp_path)}", f"out={tmp_path / 'out'}", "privacy=none"]
        config = compose("annotate", overrides=overrides)
    with pytest.raises(ConfigError, match="give corpus= shards"):
        annotate.create_application(config)


@pytest.fixture
def write_tiny_images() -> Callable[[Path], Path]:
    from PIL import Image

    def write(folder: Path) -> Path:
        (folder / "images").mkdir()
        Image.new("RGB", (20, 10)).save(folder / "images" / "a.jpg")
        return folder / "images"

    return write
