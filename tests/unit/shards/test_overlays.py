"""Overlays have the size of the image, are coloured on masks only, and show smaller masks on top."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_mask_record
from PIL import Image

from sam_train.cli.commands import data as main
from sam_train.errors import ConfigError
from sam_train.records import ImageRecord
from sam_train.shards import Sample, encode_jpeg
from sam_train.shards.drawing import draw_masks, mask_colour
from sam_train.shards.exporters.folder import ExportFolder
from sam_train.shards.exporters.overlays import export_overlays
from sam_train.shards.writer import write_shard

HEIGHT, WIDTH = 60, 80


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


SMALL, LARGE = rectangle(20, 20, 12, 12), rectangle(10, 10, 40, 40)


@pytest.fixture
def sample() -> Sample:
    """A gray image with a small mask inside a large one."""
    masks = [make_mask_record(SMALL, mask_id=1), make_mask_record(LARGE, mask_id=2)]
    record = ImageRecord(key="a", image_id=1, width=WIDTH, height=HEIGHT, masks=masks)
    return Sample(shard="s.tar", jpeg=encode_jpeg(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)), record=record)


def exported(folder: Path, samples: list[Sample], **options: float) -> tuple[list[np.ndarray], Counter[str]]:
    counts: Counter[str] = Counter()
    export_overlays(samples, ExportFolder(folder, counts), counts, **options)
    return [np.asarray(Image.open(path)) for path in sorted((folder / "overlays").iterdir())], counts


def test_draws_colours_on_the_masks_only(sample: Sample, tmp_path: Path) -> None:
    (overlay,), counts = exported(tmp_path, [sample], opacity=1.0)
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(overlay[26, 26], mask_colour(0), "the small mask lies on the large one")
    np.testing.assert_array_equal(overlay[45, 45], mask_colour(1))
    np.testing.assert_allclose(overlay[20, 26], mask_colour(0, bright=True), atol=25, err_msg="its border, a little soft")
    away = np.ones((HEIGHT, WIDTH), bool)
    away[8:52, 8:52] = False
    assert np.abs(overlay[away].astype(int) - 128).max() <= 1
    assert counts == {}


def test_opacity_applies_to_the_inside(sample: Sample, tmp_path: Path) -> None:
    (overlay,), _ = exported(tmp_path, [sample], opacity=0.0)
    assert np.abs(overlay[45, 45].astype(int) - 128).max() <= 1
    np.testing.assert_allclose(overlay[49, 30], mask_colour(1, bright=True), atol=25)
    with pytest.raises(ConfigError, match=r"--opacity is 1\.5"):
        exported(tmp_path / "other", [sample], opacity=1.5)


def test_smaller_canvas_has_smooth_edges(sample: Sample) -> None:
    small = draw_masks(np.full((HEIGHT // 3, WIDTH // 3, 3), 128, np.uint8), sample.record)
    assert small.shape == (HEIGHT // 3, WIDTH // 3, 3)
    assert (small[15, 15] != 128).any()
    assert (small[1, 1] == 128).all()


def test_command_writes_overlays(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ImageRecord(key="b", image_id=2, width=WIDTH, height=HEIGHT, masks=[])
    write_shard(tmp_path / "sa_000000.tar", [(sample.record, sample.jpeg), (empty, sample.jpeg)])
    main(["export", "overlays", "--shards", str(tmp_path / "sa_000000.tar"), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "out" / "images" / "a.jpg").read_bytes() == sample.jpeg
    assert "counted: 1 image_without_masks" in capsys.readouterr().out
