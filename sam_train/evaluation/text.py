"""Masks from text prompts: each name of the masks of an image is one text prompt.

Several masks may have the same name, and a prediction may match any of them: its IoU is that with the best-matching mask. The
control prompts for a random name of the data set that the image does not have and compares the prediction with the same masks; a
model that ignores the text, for example one that always predicts the largest object, scores as high there. The correcting click
is that of the click protocol: the centre of the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sam_train.data.record_parser import parse_target_record
from sam_train.errors import ConfigError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
    mean,
)
from sam_train.evaluation.text_figures import draw_predictions
from sam_train.files import atomic_write_bytes
from sam_train.inference import Predictor
from sam_train.masks import mask_iou
from sam_train.prompts import NextStep, PromptRound, PromptSimulator
from sam_train.records import ImageRecord
from sam_train.rle import decode_rle
from sam_train.shards import decode_jpeg
from sam_train.shards.index import IndexedSample, read_sample_bytes
from sam_train.structures import Prompts
from sam_train.text import TextEncoder, check_text_encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Paraphrase:
    """Another text prompt for a name.

    template: text with one "{name}". synonyms: word of a name -> its replacement. reverse: put the words in reverse order.
    """

    template: str = "{name}"
    synonyms: Mapping[str, str]
    reverse: bool = False

    @staticmethod
    def from_config(config: Mapping[str, object]) -> Paraphrase:
        """Build a paraphrase. Raises ConfigError for an unknown key and for a template without exactly one {name}."""
        for old, new in {"words": "synonyms", "backwards": "reverse"}.items():
            if old in config:
                raise ConfigError(f"protocol.paraphrases: {old}: renamed to {new}")
        keys = {"template", "synonyms", "reverse"}
        paraphrase = Paraphrase(**{"synonyms": {}, **config}) if set(config) <= keys else None  # type: ignore[arg-type]
        if paraphrase is None or paraphrase.template.count("{name}") != 1:
            raise ConfigError(
                f"a paraphrase is {dict(config)}: expected the keys {', '.join(sorted(keys))}, and one {{name}} in the template"
            )
        return paraphrase

    def __call__(self, name: str) -> str:
        words = [self.synonyms.get(word, word) for word in name.split()]
        return self.template.replace("{name}", " ".join(reversed(words) if self.reverse else words))


@dataclass(frozen=True, slots=True)
class _TextPredictions:
    """Predictions for N text prompts on one image."""

    prompts: Prompts
    mask_logits: Float[Tensor, "N 1 h w"]
    masks: Bool[Tensor, "N H W"]
    targets: Bool[Tensor, "N H W"]
    """The best-matching ground-truth mask of each prediction."""
    ious: list[float]


class TextProtocol(EvaluationProtocol):
    """IoU of masks predicted from text prompts.

    encoder: the text encoder with which the model was trained.
    paraphrases: title -> configuration of a `Paraphrase`, measured in addition to the unchanged names.
    min_area_px: smaller masks are skipped (image frame), and so are names that only they have.
    seed: of the random names of the control.
    figures: folder for one PNG per image that shows the predictions for its names; null writes none.

    Raises ConfigError for an invalid paraphrase.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        paraphrases: Mapping[str, Mapping[str, object]] | None = None,
        min_area_px: int = 100,
        seed: int = 0,
        figures: str | None = None,
    ) -> None:
        self.encoder, self.min_area_px, self.seed, self.figures = encoder, min_area_px, seed, figures
        self.paraphrases = {title: Paraphrase.from_config(config) for title, config in (paraphrases or {}).items()}
        self.click = PromptSimulator(box_probability=0, click="center")
        self._names: list[str] = []

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        image_entries = list_shard_images(shards)
        names = {name for image_entry in image_entries for name in _names(image_entry) if name}
        if len(names) < 2:
            raise ConfigError(
                f"{len(names)} names in {len(image_entries)} images: the control needs at least two names; give shards whose"
                " masks have names (sam-data import keeps categories)"
            )
        self._names = sorted(names)
        return image_entries

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        check_text_encoder(predictor.model, self.encoder)
        sample = load_sample(image_entry)
        targets = self._targets(sample.record)
        other_names = self._other_names(sample.record, image_entry.number, len(targets))
        if not targets or other_names is None:
            return {"names": []}
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
        predictor.set_image(image)
        masks = [mask.to(predictor.device) for mask in targets.values()]
        text_prompts = {"names": list(targets), "control": other_names}
        text_prompts |= {title: [paraphrase(name) for name in targets] for title, paraphrase in self.paraphrases.items()}
        measured: Measurement = {"names": list(targets), "others": other_names}
        for title, texts in text_prompts.items():
            predictions = self._predict(predictor, texts, masks)
            measured[f"iou/{title}"] = predictions.ious
            if title == "names":
                measured["iou/click"] = self._ious_after_click(predictor, predictions)
                self._save_figure(image_entry, image, targets, predictions)
        return measured

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        measured = [m for m in measurements if m["names"]]
        if not measured:
            raise ConfigError(f"no named mask in {len(measurements)} images: name other shards, or lower protocol.min_area_px")

        def mean_iou(title: str) -> float:
            return mean([iou for m in measured for iou in m[f"iou/{title}"]])

        miou, control = mean_iou("names"), mean_iou("control")
        measures = {"miou_by_words": miou, "miou_control": control, "ratio_to_control": miou / max(control, 1e-9)}
        measures |= {f"miou_{title}": mean_iou(title) for title in self.paraphrases}
        measures |= {"miou_by_words_and_click": mean_iou("click"), "num_text_prompts": sum(len(m["names"]) for m in measured)}
        return Summary(measures=measures | {"num_images": len(measurements)})

    def _predict(self, predictor: Predictor, texts: Sequence[str], targets: Sequence[Bool[Tensor, "..."]]) -> _TextPredictions:
        """Predict a mask for each text and compare it with the ground-truth masks of its name (n x H x W)."""
        embeddings = self.encoder.embed_texts(texts).to(predictor.device)
        prompts = Prompts.from_text(torch.zeros(len(texts), dtype=torch.long, device=predictor.device), embeddings)
        best = predictor.predict_prompts(prompts, multimask_output=True).best()
        masks = predictor.masks_to_image(best.mask_logits)[:, 0]
        ious = [mask_iou(mask.expand(len(named), -1, -1), named) for mask, named in zip(masks, targets, strict=True)]
        matched = torch.stack([named[int(iou.argmax())] for iou, named in zip(ious, targets, strict=True)])
        return _TextPredictions(prompts, best.mask_logits, masks, matched, [float(iou.amax()) for iou in ious])

    def _ious_after_click(self, predictor: Predictor, first: _TextPredictions) -> list[float]:
        """Return the IoUs with the same targets after one click on the error."""
        round_ = PromptRound(0, NextStep.ERROR_CLICK)
        rng = torch.Generator()  # unused: a central click is not random
        prompts = self.click.next_prompts(round_, first.prompts, first.masks, first.targets, first.mask_logits, rng)
        corrected = predictor.predict_prompts(prompts, multimask_output=False)
        return mask_iou(predictor.masks_to_image(corrected.mask_logits)[:, 0], first.targets).tolist()

    def _save_figure(
        self, image_entry: EvaluationImage, image: np.ndarray, targets: Mapping[str, Tensor], predictions: _TextPredictions
    ) -> None:
        if self.figures:
            ground_truth = [masks.cpu().numpy() for masks in targets.values()]
            masks = list(predictions.masks.cpu().numpy())
            figure = draw_predictions(image, list(targets), masks, ground_truth, predictions.ious)
            _, png = cv2.imencode(".png", figure[..., ::-1])
            atomic_write_bytes(Path(self.figures) / f"{image_entry.name}.png", png.tobytes())

    def _targets(self, record: ImageRecord) -> dict[str, Bool[Tensor, "n H W"]]:
        """Return the ground-truth masks of each name, in alphabetical order of the names."""
        by_name: dict[str, list[np.ndarray]] = {}
        for mask in record.masks:
            if mask.name and mask.area >= self.min_area_px:
                pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, key=record.key)
                by_name.setdefault(mask.name, []).append(pixels)
        return {name: torch.from_numpy(np.stack(masks)) for name, masks in sorted(by_name.items())}

    def _other_names(self, record: ImageRecord, number: int, count: int) -> list[str] | None:
        """Draw `count` names of the data set that the image does not have; None if it has them all."""
        image_names = {mask.name for mask in record.masks}
        others = [name for name in self._names if name not in image_names]
        rng = np.random.default_rng([self.seed, number])
        return [others[i] for i in rng.integers(len(others), size=count)] if others else None


def _names(image_entry: EvaluationImage) -> Sequence[str]:
    assert isinstance(image_entry.source, IndexedSample)
    entry = image_entry.source
    _, document = read_sample_bytes(entry)
    return parse_target_record(document, key=entry.key, shard=str(entry.shard), names=True).names or ()
