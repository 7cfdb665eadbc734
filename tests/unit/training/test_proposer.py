"""The box proposer: training targets, box loss, learning, and the path from sam-train to the masks of an image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from server_fixtures import write_nano_checkpoint

from sam_train.checkpoint import load_checkpoint
from sam_train.config import config_dir
from sam_train.errors import CheckpointError, ConfigError
from sam_train.evaluation.prefill import PrefillProtocol
from sam_train.evaluation.protocol import EvaluationImage
from sam_train.inference import BoxMaskGenerator, Predictor
from sam_train.inference.box_mask_generator import load_proposer, save_proposer
from sam_train.losses.box_loss import BoxLoss, generalized_iou
from sam_train.metrics.precision_recall import PrecisionRecall, pairwise_box_iou
from sam_train.model.proposer import Proposer, decode_boxes
from sam_train.shards import decode_jpeg, iterate_samples, write_shard
from sam_train.shards.index import index_shard
from sam_train.train import train_model


def test_targets_follow_the_formula_in_every_cell() -> None:
    """TTFNet, 3.3: exp(-dx^2 / 2 sx^2 - dy^2 / 2 sy^2) around the centre cell; a cell belongs to its strongest object."""
    boxes = torch.tensor([[1.0, 2.0, 9.0, 8.0], [4.0, 3.0, 11.0, 9.0], [0.0, 0.0, 12.0, 12.0]])
    sizes = torch.tensor([0, 0, 1])
    loss = BoxLoss()
    targets = loss.targets(boxes, sizes, torch.Size((2, 12, 12)))
    for size in range(2):
        for y in range(12):
            for x in range(12):
                values = {}
                for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
                    reach = (max(0.5, 0.27 * (right - left)), max(0.5, 0.27 * (bottom - top)))
                    dx, dy = x - math.floor((left + right) / 2), y - math.floor((top + bottom) / 2)
                    if sizes[index] == size and abs(dx) <= reach[0] and abs(dy) <= reach[1]:
                        sx, sy = ((2 * 0.27 * side + 1) / 6 for side in (right - left, bottom - top))
                        values[index] = math.exp(-(dx**2) / (2 * sx**2) - dy**2 / (2 * sy**2))
                assert targets.heatmap[size, y, x].item() == pytest.approx(max(values.values(), default=0.0), abs=1e-6)
                owner = max(values, key=lambda index: values[index]) if values else -1
                assert targets.box_index[size, y, x] == owner
    for index in range(3):
        assert targets.weight[targets.box_index == index].sum().item() == pytest.approx(1.0)
    assert (targets.heatmap == 1).sum() == 3, "one centre per object"


def test_generalized_iou_of_known_boxes() -> None:
    one = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    assert generalized_iou(one.expand(3, 4), others).tolist() == pytest.approx([1.0, 1 / 3, -1 / 3])


def test_decodes_boxes_from_the_distances_of_a_cell() -> None:
    distances = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()[:, None, None].expand(4, 2, 3)
    assert decode_boxes(distances)[:, 1, 2].tolist() == pytest.approx([2.5 - 1, 1.5 - 2, 2.5 + 3, 1.5 + 4])


def test_precision_and_recall_match_one_to_one() -> None:
    matches = PrecisionRecall()
    ground_truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]])
    predicted = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 10.0], [21.0, 0.0, 30.0, 10.0], [70.0, 0.0, 80.0, 9.0]])
    matches.update(pairwise_box_iou(predicted, ground_truth))
    matches.update(torch.zeros(0, 2))
    precision, recall = matches.compute()
    assert (precision.item(), recall.item()) == pytest.approx((2 / 4, 2 / 5))


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings of noise and rectangles (8 channels, 16 x 16 tokens of 16 pixels), and boxes in the model frame."""
    generator = torch.Generator().manual_seed(seed)
    embedding, boxes = 0.1 * torch.randn(8, 16, 16, generator=generator), []
    for row in (0, 8):
        for column in (0, 8):
            width, height = (int(n) for n in torch.randint(2, 7, (2,), generator=generator))
            left, top = column + int(torch.randint(0, 8 - width, (1,), generator=generator)), row + 1
            embedding[:4, top : top + height, left : left + width] += 1
            boxes.append([16.0 * n for n in (left, top, left + width, min(top + height, 16))])
    return embedding, torch.tensor(boxes)


def test_learns_boxes_of_several_sizes() -> None:
    torch.manual_seed(0)
    proposer, loss = Proposer(embedding_dim=8, width=48, layers=4, size_bounds=(0.25,)), BoxLoss()
    optimizer = torch.optim.AdamW(proposer.parameters(), lr=4e-3)
    for step in range(100):
        scenes = [scene(100 + 4 * step + i) for i in range(4)]
        maps = proposer(torch.stack([embedding for embedding, _ in scenes]))
        losses = [sum(loss(maps, i, b / 8, proposer.size_classes(b, 256))) for i, (_, b) in enumerate(scenes)]
        optimizer.zero_grad()
        (torch.stack(losses).sum() / 16).backward()
        optimizer.step()
    matches = PrecisionRecall(0.5)
    for seed in range(10):
        embedding, boxes = scene(seed)
        predicted, scores = proposer.eval().propose(
            embedding[None], (256, 256), 256, score_thresh=0.3, max_boxes=50, nms_thresh=0.6
        )
        assert (scores.diff() <= 0).all()
        matches.update(pairwise_box_iou(predicted, boxes))
    precision, recall = matches.compute()
    assert precision > 0.8
    assert recall > 0.8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_checkpoint(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "sa_000000.tar", [make_sample(index, num_masks=2) for index in range(4)])
    return folder


@pytest.fixture
def config(checkpoint: Path, shards: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            base = [
                "experiment=proposer", "model=vit_nano", f"init_checkpoint={checkpoint}", f"data.shards={shards}", "threads=1",
                f"data.val_shards={shards}", f"run_dir={tmp_path / 'run'}", f"embedding_cache={tmp_path / 'embeddings'}",
                "wandb.enabled=false", "trainer.max_steps=3", "trainer.accelerator=cpu", "proposer.width=16",
            ]  # fmt: skip
            return compose("train", overrides=[*base, *overrides])

    return compose_config


def test_from_sam_train_to_masks_of_an_image(
    config: Callable[..., DictConfig], checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in load_checkpoint(checkpoint).state_dict().items()}
    metrics = train_model(config())
    assert {"val/box_precision", "val/box_recall", "steps"} <= set(metrics)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 3
    assert not (tmp_path / "run" / "model.pt").exists()
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 4, "each image is encoded once"
    assert train_model(config()) == metrics, "a finished run is not repeated"
    first, second = (train_model(config(f"run_dir={tmp_path / name}", "seed=0")) for name in ("a", "b"))
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}
    file, model = tmp_path / "run" / "proposer.pt", load_checkpoint(checkpoint)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    generator = BoxMaskGenerator(
        file=str(file), score_thresh=0.0, max_boxes=5, pred_iou_thresh=-100, stability_score_thresh=-1, mask_nms_thresh=1.0
    )
    sample = next(iter(iterate_samples([shards / "sa_000000.tar"])))
    image = decode_jpeg(sample.jpeg)
    masks, _ = generator.generate(model, image)
    assert masks
    for mask in masks:
        assert mask.mask.shape == image.shape[:2]
        assert mask.area == mask.mask.sum() > 0
        assert [label for *_, label in mask.prompt_points] == [2, 3]
        (left, top, _), (right, bottom, _) = mask.prompt_points
        assert 0 <= left < right <= image.shape[1]
        assert 0 <= top < bottom <= image.shape[0]
    subject = EvaluationImage(number=1, name="a", source=index_shard(shards / "sa_000000.tar")[0])
    protocol = PrefillProtocol(generator=generator)
    measured = protocol.measure(Predictor(model), subject)
    assert (measured["found"], measured["there"]) == (len(masks), 2)
    summary = protocol.summarize([measured, {"found": 4, "there": 2, "matched": [2, 1, 0]}]).measures
    assert summary["recall_at_0.5"] == (measured["matched"][0] + 2) / 4
    assert summary["precision_at_0.75"] == (measured["matched"][1] + 1) / (len(masks) + 4)
    strict, dropped = BoxMaskGenerator(file=str(file), score_thresh=0.0, max_boxes=5, pred_iou_thresh=1.0).generate(model, image)
    assert (strict, dropped["predicted_iou"]) == ([], 5)


def test_rejects_a_proposer_of_another_image_encoder(checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(checkpoint)
    path = tmp_path / "proposer.pt"
    save_proposer(path, Proposer(embedding_dim=model.image_embedding_dim), model, {})
    generator = BoxMaskGenerator(file=str(path))
    next(model.mask_decoder.parameters()).data.add_(1)
    generator.generate(model, np.zeros((32, 48, 3), np.uint8))  # the decoder may have been trained since
    other = load_checkpoint(checkpoint)
    next(other.image_encoder.parameters()).data.add_(1)
    with pytest.raises(CheckpointError, match="was trained on image encoder"):
        generator.generate(other, np.zeros((32, 48, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "model"])
def test_rejects_files_that_are_not_proposers(content: Any, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "proposer.pt"
    path.write_bytes(checkpoint.read_bytes() if content == "model" else content)
    with pytest.raises(CheckpointError, match=r"proposer\.pt (cannot be read as|is not) a proposer"):
        load_proposer(path)
    with pytest.raises(CheckpointError, match="no such file: "):
        load_proposer(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("losses=paper", "losses=boxes"),
        ("freeze_image_encoder=false", "embedding_cache requires"),
        ("training.ema_decay=0.9", "ema_decay is not supported"),
        ("proposer.size_bounds=[0.3,0.1]", "increasing numbers"),
    ],
)
def test_rejects_options_that_exclude_each_other(config: Callable[..., DictConfig], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_model(config(override))
