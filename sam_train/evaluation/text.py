"""Masks by words: every name that an image's masks have is asked for once.

A name may be that of several masks, and an answer is right that is any of them: its IoU is that with the mask that it meets
best. What words are worth shows beside the control, where another name is asked for, drawn from those of the set that the image
does not have, and compared with the same masks: a model that answers with the largest object whatever it is asked reaches as much
there. The correcting click is the one of the click protocol: in the middle of what is wrong.
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
from sam_train.masks import decode_rle, mask_iou
from sam_train.prompts import NextStep, PromptRound, PromptSimulator
from sam_train.records import ImageRecord
from sam_train.shards import decode_jpeg
from sam_train.shards.index import IndexedSample, read_sample_bytes
from sam_train.structures import Prompts
from sam_train.text import TextEncoder, check_text_encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Paraphrase:
    """Another way to ask for a name.

    template: with one "{name}". words: what stands for which of its words. backwards: its words in the other order.
    """

    template: str = "{name}"
    words: Mapping[str, str]
    backwards: bool = False

    @staticmethod
    def of(given: Mapping[str, object]) -> Paraphrase:
        """From a config. Raises ConfigError for another key and for a template without a name."""
        known = {"template", "words", "backwards"}
        wording = Paraphrase(**{"words": {}, **given}) if set(given) <= known else None  # type: ignore[arg-type]
        if wording is None or wording.template.count("{name}") != 1:
            raise ConfigError(
                f"a wording is {dict(given)}: expected some of {', '.join(sorted(known))}, a template with one {{name}}"
            )
        return wording

    def __call__(self, name: str) -> str:
        said = [self.words.get(word, word) for word in name.split()]
        return self.template.replace("{name}", " ".join(reversed(said) if self.backwards else said))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Words and what came of them."""

    prompts: Prompts
    mask_logits: Float[Tensor, "N 1 h w"]
    answers: Bool[Tensor, "N H W"]
    meant: Bool[Tensor, "N H W"]
    """The mask that each answer meets best."""
    ious: list[float]


class TextProtocol(EvaluationProtocol):
    """The protocol with its choices.

    encoder: the text encoder that the model was trained with.
    wordings: title -> how else to ask (`Paraphrase`), each measured beside the names as they are.
    min_area_px: smaller masks are not asked for (image frame); what only they are called is not either.
    pictures: a folder for a PNG of each image: what its names were answered with; null keeps none.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        wordings: Mapping[str, Mapping[str, object]] | None = None,
        min_area_px: int = 100,
        seed: int = 0,
        pictures: str | None = None,
    ) -> None:
        self.encoder, self.min_area_px, self.seed, self.pictures = encoder, min_area_px, seed, pictures
        self.wordings = {title: Paraphrase.of(given) for title, given in (wordings or {}).items()}
        self.click = PromptSimulator(box_probability=0, click="center")
        self._names: list[str] = []

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        found = list_shard_images(shards)
        names = {name for image_entry in found for name in _names(image_entry) if name}
        if len(names) < 2:
            wanted = "shards of at least two names (sam-data import keeps categories)"
            raise ConfigError(
                f"{len(names)} names in {len(found)} images: words are measured against other words, so give {wanted}"
            )
        self._names = sorted(names)
        return found

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        check_text_encoder(predictor.model, self.encoder)
        sample = load_sample(image_entry)
        targets = self._targets(sample.record)
        others = self._others(sample.record, image_entry.number, len(targets))
        if not targets or others is None:
            return {"names": []}
        image = decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key)
        predictor.set_image(image)
        masks = [mask.to(predictor.device) for mask in targets.values()]
        ways = {"names": list(targets), "control": others}
        ways |= {title: [wording(name) for name in targets] for title, wording in self.wordings.items()}
        measured: Measurement = {"names": list(targets), "others": others}
        for title, words in ways.items():
            asked = self._asked(predictor, words, masks)
            measured[f"iou/{title}"] = asked.ious
            if title == "names":
                measured["iou/click"] = self._clicked(predictor, asked)
                self._save_figure(image_entry, image, targets, asked)
        return measured

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        measured = [m for m in measurements if m["names"]]
        if not measured:
            raise ConfigError(f"no name to ask for in {len(measurements)} images: give others, or lower protocol.min_area_px")

        def of(title: str) -> float:
            return mean([iou for m in measured for iou in m[f"iou/{title}"]])

        words, control = of("names"), of("control")
        measures = {"miou_by_words": words, "miou_control": control, "ratio_to_control": words / max(control, 1e-9)}
        measures |= {f"miou_{title}": of(title) for title in self.wordings}
        measures |= {"miou_by_words_and_click": of("click"), "num_asked": sum(len(m["names"]) for m in measured)}
        return Summary(measures=measures | {"num_images": len(measurements)})

    def _asked(self, predictor: Predictor, words: Sequence[str], targets: Sequence[Bool[Tensor, "..."]]) -> _Asked:
        """The answers to `words`, each measured with the best of its name's `targets` (n H W)."""
        embeddings = self.encoder.embed_texts(words).to(predictor.device)
        prompts = Prompts.from_text(torch.zeros(len(words), dtype=torch.long, device=predictor.device), embeddings)
        best = predictor.predict(prompts, multimask_output=True).best()
        answers = predictor.masks_to_image(best.mask_logits)[:, 0]
        met = [mask_iou(answer.expand(len(own), -1, -1), own) for answer, own in zip(answers, targets, strict=True)]
        meant = torch.stack([own[int(each.argmax())] for each, own in zip(met, targets, strict=True)])
        return _Asked(prompts, best.mask_logits, answers, meant, [float(each.amax()) for each in met])

    def _clicked(self, predictor: Predictor, asked: _Asked) -> list[float]:
        """IoU with the mask that was meant, after one click where the answer is wrong."""
        round_ = PromptRound(0, NextStep.ERROR_CLICK)
        rng = torch.Generator()  # unused: a central click is not drawn
        corrected = self.click.next_prompts(round_, asked.prompts, asked.answers, asked.meant, asked.mask_logits, rng)
        again = predictor.predict(corrected, multimask_output=False)
        return mask_iou(predictor.masks_to_image(again.mask_logits)[:, 0], asked.meant).tolist()

    def _save_figure(self, image_entry: EvaluationImage, image: np.ndarray, targets: Mapping[str, Tensor], asked: _Asked) -> None:
        if self.pictures:
            truths = [own.cpu().numpy() for own in targets.values()]
            drawn = draw_predictions(image, list(targets), list(asked.answers.cpu().numpy()), truths, asked.ious)
            _, png = cv2.imencode(".png", drawn[..., ::-1])
            atomic_write_bytes(Path(self.pictures) / f"{image_entry.name}.png", png.tobytes())

    def _targets(self, record: ImageRecord) -> dict[str, Bool[Tensor, "n H W"]]:
        """The masks of each name."""
        found: dict[str, list[np.ndarray]] = {}
        for mask in record.masks:
            if mask.name and mask.area >= self.min_area_px:
                pixels = decode_rle(mask.segmentation, height=record.height, width=record.width, key=record.key)
                found.setdefault(mask.name, []).append(pixels)
        return {name: torch.from_numpy(np.stack(masks)) for name, masks in sorted(found.items())}

    def _others(self, record: ImageRecord, number: int, count: int) -> list[str] | None:
        """Names of the set that the image does not have, drawn; None of an image that has them all."""
        own = {mask.name for mask in record.masks}
        others = [name for name in self._names if name not in own]
        rng = np.random.default_rng([self.seed, number])
        return [others[i] for i in rng.integers(len(others), size=count)] if others else None


def _names(image_entry: EvaluationImage) -> Sequence[str]:
    assert isinstance(image_entry.source, IndexedSample)
    entry = image_entry.source
    _, document = read_sample_bytes(entry)
    return parse_target_record(document, key=entry.key, shard=str(entry.shard), names=True).names or ()
