"""Masks, provenance and counters of each stage. The generator is a fake with known masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import make_mask_record
from omegaconf import OmegaConf

from data_engine.annotators import SimulatedAnnotator
from data_engine.stages import AssistedManual, FullyAutomatic, SemiAutomatic, Stage
from data_engine.structures import SourceImage
from sam_train.config import build, config_dir
from sam_train.inference import GeneratedMask, GridMaskGenerator, MaskOrigin
from sam_train.inference.grids import Crop
from sam_train.model import Sam
from sam_train.records import ImageRecord
from sam_train.rle import encode_rle
from sam_train.structures import Prompts

HEIGHT, WIDTH = 40, 60


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


SMALL, LARGE, MIDDLE = rectangle(2, 2, 8, 8), rectangle(20, 4, 20, 20), rectangle(2, 20, 12, 12)


class KnownMasks(GridMaskGenerator):
    def __init__(self, masks: list[np.ndarray]) -> None:
        super().__init__()
        self.masks = masks

    def infer(self, model: Sam, image: np.ndarray, prompts: Prompts | None = None) -> tuple[list[GeneratedMask], Counter[str]]:
        return [], Counter()

    def postprocess(self, masks: Sequence[GeneratedMask], dropped: Counter[str]) -> tuple[list[GeneratedMask], Counter[str]]:
        found = [
            GeneratedMask.from_rle(
                encode_rle(mask),
                predicted_iou=0.9 - i / 10,
                stability_score=0.97,
                prompt_points=((3.0, 4.0, 1),),
            )
            for i, mask in enumerate(self.masks)
        ]
        return found, Counter(stability=7, nms=2)


@pytest.fixture(scope="module")
def model() -> Sam:
    built = build(OmegaConf.load(f"{config_dir()}/model/vit_nano.yaml")).eval()
    assert isinstance(built, Sam)
    return built


@pytest.fixture(scope="module")
def image() -> SourceImage:
    records = [make_mask_record(mask, mask_id=number) for number, mask in enumerate((SMALL, LARGE, MIDDLE))]
    record = ImageRecord(key="a", image_id=5, width=WIDTH, height=HEIGHT, masks=records)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return SourceImage(key="a", image_id=5, image=pixels, jpeg=b"", origin="a.jpg", record=record)


def test_stage_classes_implement_the_protocol() -> None:
    generator = KnownMasks([])
    stages = [
        AssistedManual(SimulatedAnnotator()),
        SemiAutomatic(SimulatedAnnotator(), generator),
        FullyAutomatic(generator),
    ]
    assert all(isinstance(stage, Stage) for stage in stages)
    assert [(stage.name, stage.annotator_name, stage.needs_model) for stage in stages] == [
        ("assisted_manual", "simulated", False),
        ("semi_automatic", "simulated", True),
        ("fully_automatic", "automatic", True),
    ]


def test_assisted_manual_works_without_a_model(image: SourceImage) -> None:
    work = AssistedManual(SimulatedAnnotator()).infer(None, image)()
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])
    assert work.counts["masks_drawn"] == 3


def test_assisted_manual_with_a_model(image: SourceImage, model: Sam) -> None:
    """A model that knows nothing costs all clicks, and the brush still draws the truth."""
    work = AssistedManual(SimulatedAnnotator(max_clicks=2)).infer(model, image)()
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])
    assert (work.counts["masks_drawn"], work.counts["clicks"]) == (3, 6)


def test_semi_automatic_keeps_accepted_masks_and_adds_the_others(image: SourceImage, model: Sam) -> None:
    prefilled = [LARGE, rectangle(20, 4, 20, 19), rectangle(45, 25, 10, 10), MIDDLE]
    stage = SemiAutomatic(SimulatedAnnotator(max_clicks=1), KnownMasks(prefilled))
    work = stage.infer(model, image)()
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])
    assert [c.origin for c in work.masks] == [MaskOrigin.GENERATED, MaskOrigin.GENERATED, MaskOrigin.DRAWN]
    assert [c.seconds for c in work.masks] == [0, 0, 2 + 1.5 + 34]
    assert [c.predicted_iou for c in work.masks[:2]] == pytest.approx([0.9, 0.6])
    assert work.counts == {
        "clicks": 1,
        "masks_drawn": 1,
        "masks_clicked": 0,
        "masks_prefilled": 2,
        "masks_reviewed": 4,
        "seconds": 4 * 1.0 + 37.5,
        "seconds_by_hand": 3 * 36.0,
        "dropped/review_duplicate": 1,
        "dropped/review_no_object": 1,
    }


def test_semi_automatic_without_prefilled_masks(image: SourceImage, model: Sam) -> None:
    work = SemiAutomatic(SimulatedAnnotator(max_clicks=1), KnownMasks([])).infer(model, image)()
    assert len(work.masks) == 3
    assert work.counts["masks_prefilled"] == work.counts["masks_reviewed"] == 0


def test_fully_automatic(image: SourceImage, model: Sam) -> None:
    work = FullyAutomatic(KnownMasks([LARGE, SMALL])).infer(model, image)()
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, SMALL])
    first = work.masks[0]
    assert first.origin is MaskOrigin.GENERATED
    assert (first.predicted_iou, first.stability_score, first.seconds) == (0.9, 0.97, 0)
    assert (first.crop, first.prompt_points) == (Crop.whole_image(HEIGHT, WIDTH), ((3, 4, 1),))
    assert work.counts == {"dropped/stability": 7, "dropped/nms": 2, "masks_automatic": 2}


@pytest.mark.parametrize(
    "stage", [SemiAutomatic(SimulatedAnnotator(), KnownMasks([])), FullyAutomatic(KnownMasks([]))], ids=lambda stage: stage.name
)
def test_rejects_missing_model(stage: Stage, image: SourceImage) -> None:
    with pytest.raises(ValueError, match="needs a model"):
        stage.infer(None, image)()
