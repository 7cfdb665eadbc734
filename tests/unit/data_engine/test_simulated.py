"""The simulated annotator clicks in the error region until the prediction is accepted, and draws by hand after max_clicks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_mask_record
from torch import Tensor

from data_engine.annotators import SimulatedAnnotator
from data_engine.structures import SourceImage
from sam_train.errors import ConfigError
from sam_train.inference import GeneratedMask, MaskOrigin, Predictor
from sam_train.inference.grids import Crop
from sam_train.masks import mask_iou
from sam_train.records import ImageRecord
from sam_train.rle import encode_rle
from sam_train.structures import PointLabel, Prediction, Prompts

HEIGHT, WIDTH = 40, 60
NEVER = 99


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


SMALL, LARGE, MIDDLE = rectangle(2, 2, 8, 8), rectangle(20, 4, 20, 20), rectangle(2, 20, 12, 12)
OBJECTS = [SMALL, LARGE, MIDDLE]


def image_of(masks: list[np.ndarray] | None) -> SourceImage:
    record = None
    if masks is not None:
        records = [make_mask_record(mask, mask_id=number) for number, mask in enumerate(masks)]
        record = ImageRecord(key="a", image_id=5, width=WIDTH, height=HEIGHT, masks=records)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return SourceImage(key="a", image_id=5, image=pixels, jpeg=b"", origin="a.jpg", record=record)


def candidate(mask: np.ndarray) -> GeneratedMask:
    return GeneratedMask.from_rle(encode_rle(mask), predicted_iou=0.9, stability_score=0.9)


class FixedPredictor(Predictor):
    """Answers the left half of the object that was clicked first, and the whole object from its `good_from`-th click on."""

    def __init__(self, good_from: list[int], objects: list[np.ndarray] = OBJECTS, score: float = 0.75) -> None:
        self.score = score
        self.objects, self.good_from = torch.from_numpy(np.stack(objects)), good_from
        self.asked: list[dict[int, list[list[float]]]] = []
        self.fed_back: list[Tensor | None] = []
        self.multimask: list[bool] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def answer(self, which: int, num_clicks: int) -> Tensor:
        whole = self.objects[which]
        if num_clicks >= self.good_from[which]:
            return whole
        columns = whole.any(0).nonzero()[:, 0]
        half = whole.clone()
        half[:, int(columns[0]) + (len(columns) + 1) // 2 :] = False
        return half

    def predict_prompts(self, prompts: Prompts, *, multimask_output: bool) -> Prediction:
        asked, answers = {}, []
        for points, labels in zip(prompts.points_xy, prompts.point_labels, strict=True):
            clicks = tuple((*xy, label) for xy, label in zip(points.tolist(), labels.tolist(), strict=True) if label >= 0)
            x, y, _ = clicks[0]
            which = int(self.objects[:, int(y), int(x)].nonzero()[0, 0])
            asked[which] = clicks
            answers.append(self.answer(which, len(clicks)))
        self.asked.append(asked)
        self.fed_back.append(prompts.mask_logits)
        self.multimask.append(multimask_output)
        logits = torch.stack(answers)[:, None].float() * 20 - 10
        scores = torch.full((len(answers), 1), self.score)
        if multimask_output:  # the wanted answer is that of the highest score, and stands in the middle
            logits = torch.cat([-torch.ones_like(logits), logits, -torch.ones_like(logits)], 1)
            scores = scores * torch.tensor([0.5, 1.0, 0.1])
        return Prediction(mask_logits=logits, iou_scores=scores)

    def masks_to_image(self, mask_logits: Tensor) -> Tensor:
        return mask_logits > 0

    def stability_scores(self, mask_logits: Tensor) -> Tensor:
        return torch.ones(mask_logits.shape[:2])


def annotator(**options: float) -> SimulatedAnnotator:
    prices = {"seconds_to_find": 2.0, "seconds_per_click": 1.5, "seconds_to_draw": 34.0, "seconds_to_review": 1.0}
    return SimulatedAnnotator(**{**prices, **options})  # type: ignore[arg-type]


def test_without_a_model_all_masks_are_drawn_largest_first() -> None:
    work = annotator().annotate(image_of(OBJECTS), None, [])
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])
    assert [(c.prompt_points, c.seconds, c.crop) for c in work.masks] == [((), 36.0, Crop.whole_image(HEIGHT, WIDTH))] * 3
    assert work.counts == {"clicks": 0, "masks_drawn": 3, "masks_clicked": 0, "seconds": 108.0, "seconds_by_hand": 108.0}


def test_clicks_until_the_prediction_is_accepted() -> None:
    predictor = FixedPredictor([1, 3, 2])
    work = annotator(max_clicks=5).annotate(image_of(OBJECTS), predictor, [])
    assert [set(asked) for asked in predictor.asked] == [{0, 1, 2}, {1, 2}, {1}]
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])
    assert [len(c.prompt_points) for c in work.masks] == [3, 2, 1]
    assert [c.seconds for c in work.masks] == [2 + 3 * 1.5, 2 + 2 * 1.5, 2 + 1.5]
    assert [c.predicted_iou for c in work.masks] == [0.75] * 3
    assert work.counts == {"clicks": 6, "masks_drawn": 0, "masks_clicked": 3, "seconds": 6 + 6 * 1.5, "seconds_by_hand": 108.0}


def test_predicted_iou_of_one_does_not_count_as_drawn() -> None:
    work = annotator(max_clicks=1).annotate(image_of(OBJECTS), FixedPredictor([1, 1, NEVER], score=1.0), [])
    assert [(c.origin, c.predicted_iou) for c in work.masks] == [
        (MaskOrigin.CLICKED, 1),
        (MaskOrigin.DRAWN, 1),
        (MaskOrigin.CLICKED, 1),
    ]
    assert (work.counts["masks_clicked"], work.counts["masks_drawn"]) == (2, 1)


def test_draws_by_hand_after_max_clicks() -> None:
    predictor = FixedPredictor([NEVER, 2, NEVER])
    work = annotator(max_clicks=2).annotate(image_of(OBJECTS), predictor, [])
    assert [set(asked) for asked in predictor.asked] == [{0, 1, 2}, {0, 1, 2}]
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE, SMALL])  # the brush draws the truth
    assert [c.predicted_iou for c in work.masks] == [0.75, 1.0, 1.0]
    assert [c.seconds for c in work.masks] == [2 + 3.0, 2 + 3.0 + 34, 2 + 3.0 + 34]
    assert work.counts == {"clicks": 6, "masks_drawn": 2, "masks_clicked": 1, "seconds": 5 + 39 + 39, "seconds_by_hand": 108.0}


@pytest.mark.parametrize("max_clicks", [1, 4])
def test_never_exceeds_max_clicks(max_clicks: int) -> None:
    predictor = FixedPredictor([NEVER] * 3)
    work = annotator(max_clicks=max_clicks).annotate(image_of(OBJECTS), predictor, [])
    assert [len(c.prompt_points) for c in work.masks] == [max_clicks] * 3
    assert len(predictor.asked) == max_clicks


def test_clicks_lie_in_the_error_region() -> None:
    predictor = FixedPredictor([NEVER] * 3)
    annotator(max_clicks=4).annotate(image_of(OBJECTS), predictor, [])
    last = predictor.asked[-1]
    for which, clicks in last.items():
        x, y, label = clicks[0]
        assert label == PointLabel.FOREGROUND
        assert OBJECTS[which][int(y), int(x)]
        for number, (x, y, label) in enumerate(clicks[1:], start=1):
            wrong = predictor.answer(which, number).numpy() ^ OBJECTS[which]
            assert wrong[int(y), int(x)]
            assert label == PointLabel.FOREGROUND  # the half that is missing


def test_false_positives_get_background_clicks() -> None:
    class TooMuch(FixedPredictor):
        def answer(self, which: int, num_clicks: int) -> Tensor:
            return torch.ones(HEIGHT, WIDTH, dtype=torch.bool) if num_clicks < 2 else self.objects[which]

    predictor = TooMuch([1], [SMALL])
    (mask,) = annotator().annotate(image_of([SMALL]), predictor, []).masks
    (_, (x, y, label)) = mask.prompt_points
    assert label == PointLabel.BACKGROUND
    assert not SMALL[int(y), int(x)]


def test_first_prediction_is_the_best_of_three_and_is_fed_back() -> None:
    predictor = FixedPredictor([3, 3, 3])
    annotator().annotate(image_of(OBJECTS), predictor, [])
    assert predictor.multimask == [True, False, False]
    assert predictor.fed_back[0] is None
    assert predictor.fed_back[1] is not None
    np.testing.assert_array_equal((predictor.fed_back[1][:, 0] > 0).numpy(), [predictor.answer(i, 1).numpy() for i in (1, 2, 0)])


def test_accepts_at_the_iou_threshold() -> None:
    nearly = rectangle(20, 4, 20, 18)  # 360 of 400 pixels
    assert mask_iou(torch.from_numpy(nearly), torch.from_numpy(LARGE)) == pytest.approx(0.9)

    class Nearly(FixedPredictor):
        def answer(self, which: int, num_clicks: int) -> Tensor:
            return torch.from_numpy(nearly)

    for accept_iou, num_clicks in ((0.9, 1), (0.91, 3)):
        work = annotator(accept_iou=accept_iou, max_clicks=3).annotate(image_of([LARGE]), Nearly([1], [LARGE]), [])
        assert len(work.masks[0].prompt_points) == num_clicks
        np.testing.assert_array_equal(work.masks[0].mask, nearly if num_clicks == 1 else LARGE)


def test_existing_masks_are_not_annotated_again() -> None:
    existing = [candidate(rectangle(20, 4, 20, 19)), candidate(rectangle(50, 30, 5, 5))]
    predictor = FixedPredictor([1, 1, 1])
    work = annotator().annotate(image_of(OBJECTS), predictor, existing)
    np.testing.assert_array_equal([c.mask for c in work.masks], [MIDDLE, SMALL])
    assert predictor.asked == [{0: work.masks[1].prompt_points, 2: work.masks[0].prompt_points}]


def test_poor_existing_masks_do_not_count() -> None:
    work = annotator().annotate(image_of(OBJECTS), None, [candidate(rectangle(20, 4, 20, 10))])
    assert len(work.masks) == 3


def test_annotates_the_largest_objects_up_to_max_masks() -> None:
    work = annotator(max_masks=2).annotate(image_of(OBJECTS), None, [])
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE, MIDDLE])
    work = annotator(max_masks=2).annotate(image_of(OBJECTS), None, [candidate(MIDDLE)])
    np.testing.assert_array_equal([c.mask for c in work.masks], [LARGE])
    assert annotator(max_masks=2).annotate(image_of(OBJECTS), None, [candidate(MIDDLE), candidate(SMALL)]).masks == []


def test_no_new_masks_if_all_objects_are_covered() -> None:
    predictor = FixedPredictor([1, 1, 1])
    work = annotator().annotate(image_of(OBJECTS), predictor, [candidate(mask) for mask in OBJECTS])
    assert work.masks == []
    assert predictor.asked == []
    assert work.counts == {"clicks": 0, "masks_drawn": 0, "masks_clicked": 0, "seconds": 0, "seconds_by_hand": 0}


def test_image_without_objects() -> None:
    assert annotator().annotate(image_of([]), FixedPredictor([1, 1, 1]), []).masks == []
    verdicts, _ = annotator().review(image_of([]), [candidate(SMALL)])
    assert [(v.kept, v.reason) for v in verdicts] == [(False, "no_object")]


def test_review() -> None:
    prefilled = [LARGE, rectangle(20, 4, 20, 19), rectangle(45, 25, 10, 10), MIDDLE, rectangle(2, 2, 8, 4)]
    verdicts, counts = annotator(seconds_to_review=1.5).review(image_of(OBJECTS), [candidate(mask) for mask in prefilled])
    assert [(v.kept, v.reason) for v in verdicts] == [
        (True, ""),
        (False, "duplicate"),
        (False, "no_object"),
        (True, ""),
        (False, "no_object"),
    ]
    assert counts == {"masks_reviewed": 5, "seconds": 7.5, "seconds_by_hand": 72.0}


def test_rejects_images_without_ground_truth() -> None:
    for act in (lambda: annotator().annotate(image_of(None), None, []), lambda: annotator().review(image_of(None), [])):
        with pytest.raises(ConfigError, match="needs a source of shards with masks"):
            act()


@pytest.mark.parametrize("options", [{"max_clicks": 0}, {"accept_iou": 0.0}, {"accept_iou": 1.1}])
def test_rejects_invalid_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_clicks"):
        annotator(**options)
