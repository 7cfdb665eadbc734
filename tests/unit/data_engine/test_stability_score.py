"""Every writer of `stability_score` measures it at image resolution: IoU of the upsampled masks cut above and below 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_mask_record, small_sam
from torch import Tensor, nn
from torch.nn import functional as F

from data_engine.annotation_tool.backend.client import AnnotationClient, RemotePredictor
from data_engine.annotators.simulated import SimulatedAnnotator
from data_engine.structures import SourceImage
from sam_train.inference import BoxMaskGenerator, GeneratedMask, GridMaskGenerator, Predictor, TextMaskGenerator
from sam_train.inference.box_mask_generator import save_proposer
from sam_train.masks import mask_iou, stability_score
from sam_train.model import Sam
from sam_train.model.mask_decoder import DecodeJob
from sam_train.model.proposer import Proposer
from sam_train.records import ImageRecord
from sam_train.structures import Prediction, Prompts
from sam_train.text import TextEncoder

HEIGHT, WIDTH, SIZE, GRID, TEXT_DIM = 45, 61, 64, 16, 4


class Decoder:
    """Predicts random smooth masks, each with a predicted IoU of its own, and remembers their logits by predicted IoU."""

    def __init__(self) -> None:
        self.logits: dict[float, Tensor] = {}

    def decode(self, _: Tensor, prompts: Prompts, *, multimask_output: bool, min_iou: float | None = None) -> Prediction:
        shape = (len(prompts), 3 if multimask_output else 1)
        coarse = torch.randn(*shape, 5, 5, generator=torch.Generator().manual_seed(len(self.logits))) * 4
        logits = F.interpolate(coarse, (GRID, GRID), mode="bicubic", align_corners=False)
        scores = (torch.arange(logits[:, :, 0, 0].numel()) + len(self.logits) + 1).reshape(shape) / 1024
        self.logits |= dict(zip(scores.flatten().tolist(), logits.flatten(0, 1), strict=True))
        return Prediction(mask_logits=logits, iou_scores=scores)

    def decode_jobs(self, embeddings: Tensor, prompts: Prompts, **options: Any) -> Iterator[DecodeJob]:
        def decode(rows: Tensor) -> tuple[Tensor, Tensor]:
            prediction = self.decode(embeddings, prompts[rows], **options)
            return prediction.mask_logits, prediction.iou_scores

        yield DecodeJob(torch.arange(len(prompts)), len(prompts), decode)


class Client(AnnotationClient):
    """A client of a server that decodes with `decoder`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def decode(self, *_: Any, multimask_output: bool, **__: Any) -> tuple[np.ndarray, np.ndarray]:
        prompt = Prompts.from_boxes(torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
        prediction = self.decoder.decode(torch.zeros(0), prompt, multimask_output=multimask_output)
        return prediction.mask_logits[0].numpy(), prediction.iou_scores[0].numpy()


class Zeros(TextEncoder):
    """A text encoder that embeds each text as zeros."""

    @property
    def dim(self) -> int:
        return TEXT_DIM

    @property
    def network(self) -> nn.Module:
        return nn.Linear(1, 1)

    def _embed(self, texts: list[str]) -> Tensor:
        return torch.zeros(len(texts), TEXT_DIM)


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture
def model(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Sam:
    model = small_sam(image_size=SIZE, text_dim=TEXT_DIM).eval()
    monkeypatch.setattr(model, "decode", decoder.decode)
    monkeypatch.setattr(model, "decode_jobs", decoder.decode_jobs)
    return model


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def predictor(model: Sam, image: np.ndarray) -> Predictor:
    predictor = Predictor(model)
    predictor.set_image(image)
    return predictor


def check(masks: Sequence[GeneratedMask], decoder: Decoder, predictor: Predictor, offset: float = 1.0) -> None:
    """Compare the scores of the masks with the definition; at the resolution of the grid, they would differ."""
    assert len(masks) >= 3
    logits = torch.stack([decoder.logits[mask.predicted_iou] for mask in masks])
    upsampled = predictor.logits_to_image(logits[:, None])[:, 0]
    assert all(torch.equal(torch.from_numpy(mask.mask), pixels > 0) for mask, pixels in zip(masks, upsampled, strict=True))
    scores, expected = torch.tensor([mask.stability_score for mask in masks]), mask_iou(upsampled > offset, upsampled > -offset)
    assert torch.allclose(scores, expected, rtol=0, atol=1e-6)
    assert bool(((stability_score(logits, offset) - expected).abs() > 1e-4).all())


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_automatic_masks(decoder: Decoder, predictor: Predictor, image: np.ndarray, offset: float) -> None:
    thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "min_region_area_px": 0}
    generator = GridMaskGenerator(points_per_side=2, stability_score_offset=offset, **thresholds)  # type: ignore[arg-type]
    check(generator.generate(predictor.model, image)[0], decoder, predictor, offset)


def test_masks_of_boxes(decoder: Decoder, predictor: Predictor, image: np.ndarray, tmp_path: Path) -> None:
    model = predictor.model
    save_proposer(tmp_path / "proposer.pt", Proposer(embedding_dim=model.image_embedding_dim), model, {})
    generator = BoxMaskGenerator(
        file=str(tmp_path / "proposer.pt"),
        score_thresh=0.0,
        max_boxes=8,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        mask_nms_thresh=1.0,
    )
    check(generator.generate(model, image)[0], decoder, predictor)


def test_masks_of_text_prompts(decoder: Decoder, predictor: Predictor, image: np.ndarray) -> None:
    generator = TextMaskGenerator(text_prompts=list("abcdef"), encoder=Zeros(), pred_iou_thresh=0.0, stability_score_thresh=0.0)
    check(generator.generate(predictor.model, image)[0], decoder, predictor)


def test_thresholds_apply_to_the_written_score(decoder: Decoder, predictor: Predictor, image: np.ndarray) -> None:
    def generate(threshold: float) -> tuple[list[float], int]:
        decoder.logits.clear()
        generator = TextMaskGenerator(
            text_prompts=list("abcdef"), encoder=Zeros(), pred_iou_thresh=0.0, stability_score_thresh=threshold
        )
        masks, dropped = generator.generate(predictor.model, image)
        return sorted(mask.stability_score for mask in masks), dropped["stability"]

    scores, _ = generate(0.0)
    assert len(set(scores)) == len(scores) == 6
    assert generate(scores[2]) == (scores[2:], 2)


@pytest.mark.parametrize("remote", [False, True])
def test_clicked_masks(decoder: Decoder, predictor: Predictor, image: np.ndarray, remote: bool) -> None:
    objects = [make_mask_record(np.ones((HEIGHT, WIDTH), bool), mask_id=number) for number in range(4)]
    record = ImageRecord(key="a", image_id=5, width=WIDTH, height=HEIGHT, masks=objects)
    source = SourceImage(key="a", image_id=5, image=image, jpeg=b"", origin="a.jpg", record=record)
    task, checkpoint = {"id": 1, "height": HEIGHT, "width": WIDTH}, {"checkpoint": "x", "image_size": SIZE}
    used = RemotePredictor(Client(decoder), task, checkpoint) if remote else predictor
    work = SimulatedAnnotator(accept_iou=0.01).annotate(source, used, [])
    check(work.masks, decoder, predictor)
