"""Recall of proposals: the evaluated masks, the number of proposals, and their ranking."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_mask_record, make_sample
from fake_sam import SIZE, Candidates, ScriptedSam
from omegaconf import OmegaConf

from sam_train.config import build, config_dir
from sam_train.errors import ConfigError, ShardError
from sam_train.evaluation.proposals import PAPER, ProposalProtocol
from sam_train.inference import GeneratedMask, GridMaskGenerator, Predictor
from sam_train.rle import encode_rle
from sam_train.shards import write_shard


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


TRUTHS = [rectangle(2, 2, 20, 20), rectangle(30, 2, 20, 30), rectangle(2, 30, 34, 34), rectangle(50, 50, 5, 5)]
"""400, 600, 1156 and 25 pixels: small, small, medium, small."""


class Known(GridMaskGenerator):
    """A generator that returns given masks."""

    def __init__(self, *found: tuple[np.ndarray, float, float]) -> None:
        super().__init__()
        self.found = found

    def generate(self, model: Any, image: np.ndarray, prompts: Any = None) -> tuple[list[GeneratedMask], Counter[str]]:
        masks = [
            GeneratedMask.from_rle(encode_rle(mask), predicted_iou=iou, stability_score=stability)
            for mask, iou, stability in self.found
        ]
        return masks, Counter()


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """One image with the truths, ids 10, 11 ..., and one without masks."""
    record, jpeg = make_sample(0, height=SIZE, width=SIZE)
    masks = [make_mask_record(mask, mask_id=10 + n) for n, mask in enumerate(TRUTHS)]
    other, other_jpeg = make_sample(1, height=SIZE, width=SIZE, num_masks=0)
    write_shard(tmp_path / "sa_000000.tar", [(replace(record, masks=masks), jpeg), (other, other_jpeg)])
    return str(tmp_path)


@pytest.fixture
def annotations(tmp_path: Path) -> Callable[..., str]:
    """The JSON of the truths: categories 1, 2, 3 by turns; areas as measured unless given."""

    def write(areas: tuple[Any, ...] = (400, 600, 1156, 25), frequencies: str | None = "fcr") -> str:
        categories = [{"id": c} | ({"frequency": frequencies[c - 1]} if frequencies else {}) for c in (1, 2, 3)]
        entries = [{"id": 10 + n, "category_id": 1 + n % 3, "area": area} for n, area in enumerate(areas)]
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps({"categories": categories, "annotations": entries}))
        return str(path)

    return write


def measured(protocol: ProposalProtocol, shards: str) -> dict[str, float]:
    predictor = Predictor(ScriptedSam(lambda points, multimask: []))
    return dict(protocol.summarize([protocol.measure(predictor, image) for image in protocol.list_images(shards)]).measures)


def test_recall_is_measured_on_the_masks_of_the_shards(shards: str) -> None:
    near = rectangle(34, 2, 20, 30)  # four pixels down: IoU 16 / 24 with the second truth, four of ten thresholds
    found = measured(ProposalProtocol(generator=Known((TRUTHS[0], 0.9, 0.9), (near, 0.8, 0.8), (TRUTHS[2], 0.7, 0.7))), shards)
    assert found["ar"] == pytest.approx((1 + 0.4 + 1) / 4)
    assert (found["ar_small"], found["ar_medium"]) == (pytest.approx(1.4 / 3), 1)
    assert "ar_large" not in found, "there is none"
    assert (found["num_small"], found["num_medium"], found["num_large"], found["num_masks"]) == (3, 1, 0, 4)
    assert (found["num_images"], found["proposals_per_image"]) == (2, 3), "the other image has no mask, and its proposals"


def test_keeps_proposals_of_highest_mean_score(shards: str) -> None:
    generator = Known((TRUTHS[0], 0.9, 0.1), (TRUTHS[1], 0.6, 0.6), (TRUTHS[2], 0.2, 0.99), (TRUTHS[3], 0.4, 0.4))
    protocol = ProposalProtocol(generator=generator, max_proposals=2)
    proposals = protocol.proposals(Predictor(ScriptedSam(lambda points, multimask: [])), np.zeros((SIZE, SIZE, 3), np.uint8))
    assert [proposal.rle for proposal in proposals] == [encode_rle(TRUTHS[1]), encode_rle(TRUTHS[2])]
    assert measured(protocol, shards)["ar"] == 0.5


def test_recall_by_lvis_frequency(shards: str, annotations: Callable[..., str]) -> None:
    generator = Known((TRUTHS[0], 0.9, 0.9), (TRUTHS[2], 0.9, 0.9))
    found = measured(ProposalProtocol(generator=generator, annotations=annotations()), shards)
    assert [found[f"ar_{name}"] for name in ("frequent", "common", "rare")] == [0.5, 0, 1]
    assert [found[f"num_{name}"] for name in ("frequent", "common", "rare")] == [2, 1, 1]
    assert found.keys() >= {"ar", "ar_small", "ar_medium"}


def test_areas_are_those_of_the_json(shards: str, annotations: Callable[..., str]) -> None:
    path = annotations(areas=(1024, 1024.5, 9216.0, 9300), frequencies=None)
    found = measured(ProposalProtocol(generator=Known((TRUTHS[0], 0.9, 0.9)), annotations=path), shards)
    assert (found["num_small"], found["num_medium"], found["num_large"]) == (1, 3, 2), "both ends of a range are in"
    assert "ar_frequent" not in found


def test_skips_small_masks(shards: str) -> None:
    found = measured(ProposalProtocol(generator=Known((TRUTHS[0], 0.9, 0.9)), min_area_px=26), shards)
    assert (found["num_masks"], found["ar"]) == (3, pytest.approx(1 / 3))


def test_rejects_annotations_of_other_shards(shards: str, annotations: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mask 13 of sa_000000 is not in protocol\.annotations"):
        measured(ProposalProtocol(generator=Known(), annotations=annotations(areas=(1, 2, 3))), shards)
    with pytest.raises(ShardError, match=r"annotations\[0\]: expected a number as 'area', got None"):
        ProposalProtocol(generator=Known(), annotations=annotations(areas=(None,)))
    write_shard(tmp_path / "empty" / "sa_000000.tar", [make_sample(0, num_masks=0)])
    with pytest.raises(ConfigError, match="no mask to evaluate in 1 images"):
        measured(ProposalProtocol(generator=Known()), str(tmp_path / "empty"))


def test_generator_of_the_paper_drops_only_duplicates(shards: str) -> None:
    """The config's generator: scores near nothing, a mask of one pixel, one of the whole image, all stay."""
    whole, dot = np.ones((SIZE, SIZE), bool), rectangle(40, 40, 1, 1)

    def answer(points: list[tuple[float, float, int]], multimask: bool) -> Candidates:
        shaky = torch.where(torch.from_numpy(TRUTHS[0]), 0.5, -0.5)  # cut at -1 and at 1 they have nothing in common
        return [(shaky, -0.2), (torch.from_numpy(whole), 0.01), (torch.from_numpy(dot), 0.0)]

    config = OmegaConf.load(Path(config_dir()) / "protocol" / "proposals.yaml")
    config.generator.points_per_side = 3
    protocol = build(config)
    proposals = protocol.proposals(Predictor(ScriptedSam(answer)), np.zeros((SIZE, SIZE, 3), np.uint8))
    assert {proposal.rle["counts"] for proposal in proposals} == {encode_rle(m)["counts"] for m in (TRUTHS[0], whole, dot)}
    assert len(proposals) == 3


def test_summary_has_the_papers_figures(shards: str) -> None:
    protocol = ProposalProtocol(generator=Known((TRUTHS[0], 0.9, 0.9)))
    predictor = Predictor(ScriptedSam(lambda points, multimask: []))
    summary = protocol.summarize([protocol.measure(predictor, image) for image in protocol.list_images(shards)])
    assert summary.paper is PAPER
    assert PAPER["paper: SAM ViT-H, LVIS v1 val"]["ar"] == 0.593
    assert PAPER["paper: SAM ViT-H, LVIS v1 val"]["ar_rare"] == 0.658
