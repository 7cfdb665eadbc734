"""How many clicks a mask needs: NoC@85, NoC@90 on GrabCut, Berkeley, DAVIS and whatever has their form.

The protocol of RITM (Sofiiuk et al. 2021) and SimpleClick: at most 20 clicks, each at the pixel of the false-negative or the
false-positive region that lies farthest from its boundary and was not clicked before; the larger distance decides, a draw is a
background click. SAM's answer to the first click is the best of three by predicted IoU, then the single mask, with the previous
logits fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_train.errors import ConfigError, ShardError, SkipSampleError
from sam_train.evaluation.protocol import (
    EvaluationImage,
    EvaluationProtocol,
    Measurement,
    Summary,
    list_shard_images,
    load_sample,
    mean,
)
from sam_train.inference import Predictor, make_prompts
from sam_train.masks import decode_rle
from sam_train.metrics.number_of_clicks import number_of_clicks
from sam_train.prompts.sampling import squared_distance_transform
from sam_train.shards import decode_jpeg
from sam_train.shards.image_io import IMAGE_EXTENSIONS, open_image_header
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem, load_image_or_raise
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.keys import keys_from_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetImage:
    """An image, the masks that are wanted of it, and pixels that nobody asks about."""

    image: np.ndarray
    targets: Bool[np.ndarray, "N H W"]
    void: Bool[np.ndarray, "H W"]


class ClicksNeededProtocol(EvaluationProtocol):
    """The protocol with its choices.

    images, masks: folders with pictures and one mask each of equal stem; without them the masks of `shards` are taken.
    void_value: this gray value of a mask is asked about by nobody, above it is the target (GrabCut: 128; Berkeley has none).
        null: every pixel that is not black is the target (DAVIS).
    max_clicks, thresholds: 20 clicks at most, told at IoU 0.85 and 0.90.
    masks_per_image, min_area_px: of shards, the first so many masks of an image of at least so many pixels.
    """

    def __init__(
        self,
        *,
        images: str | None = None,
        masks: str | None = None,
        void_value: int | None = 128,
        max_clicks: int = 20,
        thresholds: Sequence[float] = (0.85, 0.90),
        masks_per_image: int = 64,
        min_area_px: int = 100,
    ) -> None:
        if (images is None) != (masks is None):
            raise ConfigError("give both protocol.images=FOLDER and protocol.masks=FOLDER, or shards=FOLDER and neither")
        self.images, self.masks, self.void_value = images, masks, void_value
        self.max_clicks, self.thresholds = max_clicks, tuple(thresholds)
        self.masks_per_image, self.min_area_px = masks_per_image, min_area_px

    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        if self.images is None or self.masks is None:
            return list_shard_images(shards)
        pictures = images_by_stem(Path(self.images))
        masks = files_by_stem(Path(self.masks), IMAGE_EXTENSIONS)
        if alone := sorted(pictures.keys() ^ masks.keys()):
            raise ConfigError(f"{alone[0]!r} is in one of {self.images} and {self.masks} only: every picture needs one mask")
        stems = sorted(pictures)
        return [
            EvaluationImage(number=number, name=key, source=(pictures[stem], masks[stem]))
            for number, (key, stem) in enumerate(zip(keys_from_paths([f"{s}.x" for s in stems]), stems, strict=True), start=1)
        ]

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        scene = self._scene(image_entry)
        if not len(scene.targets):
            return {"ious": []}
        predictor.set_image(scene.image)
        return {"ious": self._clicked(predictor, scene)}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        ious = [mask for measured in measurements for mask in measured["ious"]]
        if not ious:
            raise ConfigError(f"no mask to measure by in {len(measurements)} images: name others, or lower protocol.min_area_px")
        measures: dict[str, float] = {}
        for threshold in self.thresholds:
            percent = f"{threshold * 100:g}"
            noc, never = number_of_clicks(ious, threshold, self.max_clicks)
            measures |= {f"noc_at_{percent}": noc, f"never_at_{percent}": never}
        measures |= {"miou_at_1": mean([mask[0] for mask in ious]), "num_masks": len(ious), "num_images": len(measurements)}
        return Summary(measures=measures)

    def _clicked(self, predictor: Predictor, scene: TargetImage) -> list[list[float]]:
        """IoU of each target after each click, until it is above all thresholds."""
        ious: list[list[float]] = [[] for _ in scene.targets]
        clicks: list[list[tuple[int, int, bool]]] = [[] for _ in scene.targets]
        answers = np.zeros_like(scene.targets)
        logits: Tensor | None = None
        wanted = np.arange(len(scene.targets))
        for _ in range(self.max_clicks):
            for n in wanted:
                clicks[n].append(next_click(answers[n], scene.targets[n], scene.void, clicks[n]))
            best = self._answer(predictor, [clicks[n] for n in wanted], logits)
            answers[wanted] = predictor.masks_to_image(best)[:, 0].cpu().numpy()
            for n in wanted:
                ious[n].append(iou_outside_void(answers[n], scene.targets[n], scene.void))
            going_on = np.array([ious[n][-1] < max(self.thresholds) for n in wanted], bool)
            if not going_on.any():
                break
            wanted, logits = wanted[going_on], best[torch.from_numpy(going_on).to(best.device)]
        return ious

    def _answer(
        self, predictor: Predictor, clicks: Sequence[Sequence[tuple[int, int, bool]]], logits: Tensor | None
    ) -> Float[Tensor, "N 1 h w"]:
        points = torch.tensor([[click[:2] for click in mask] for mask in clicks], dtype=torch.float32)
        labels = torch.tensor([[int(click[2]) for click in mask] for mask in clicks])
        prompts = make_prompts(points_xy=points, point_labels=labels, mask_logits=logits, device=predictor.device)
        return predictor.predict(prompts, multimask_output=logits is None).best().mask_logits

    def _scene(self, image_entry: EvaluationImage) -> TargetImage:
        if isinstance(image_entry.source, tuple):
            return self._scene_of_files(*image_entry.source, key=image_entry.name)
        sample = load_sample(image_entry)
        height, width = sample.record.height, sample.record.width
        large = [mask for mask in sample.record.masks if mask.area >= self.min_area_px][: self.masks_per_image]
        targets = [decode_rle(mask.segmentation, height=height, width=width, key=sample.record.key) for mask in large]
        return TargetImage(
            image=decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key),
            targets=np.stack(targets) if targets else np.zeros((0, height, width), bool),
            void=np.zeros((height, width), bool),
        )

    def _scene_of_files(self, image: Path, mask: Path, *, key: str) -> TargetImage:
        pixels, values = load_image_or_raise(image, key=key).image, _gray(mask)
        check_matches_image_size(mask, values, height=pixels.shape[0], width=pixels.shape[1], key=key)
        above = 0 if self.void_value is None else self.void_value
        target = values > above
        if not target.any():
            raise ShardError(f"{mask} has no pixel above {above}: no target to click; see protocol.void_value", key=key)
        void = np.zeros(values.shape, bool) if self.void_value is None else values == self.void_value
        return TargetImage(image=pixels, targets=target[None], void=void)


def next_click(
    answer: Bool[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"],
    void: Bool[np.ndarray, "H W"],
    before: Sequence[tuple[int, int, bool]],
) -> tuple[int, int, bool]:
    """Column, row and whether it is foreground, as `Clicker` of RITM has it. `before` are the mask's clicks so far."""
    missed, false = (_depth(region & ~void, before) for region in (target & ~answer, answer & ~target))
    foreground = bool(missed.max() > false.max())
    deepest = (missed if foreground else false).argmax()
    row, column = divmod(int(deepest), answer.shape[1])
    return column, row, foreground


def iou_outside_void(answer: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"], void: Bool[np.ndarray, "H W"]) -> float:
    """IoU of what is not void."""
    return float((answer & target & ~void).sum() / max(1, ((answer | target) & ~void).sum()))


def _depth(region: Bool[np.ndarray, "H W"], clicked: Sequence[tuple[int, int, bool]]) -> Int[np.ndarray, "H W"]:
    """How deep each pixel lies in the region (`squared_distance_transform`); 0 where a click has been."""
    depth = squared_distance_transform(region)
    for column, row, _ in clicked:
        depth[row, column] = 0
    return depth


def _gray(path: Path) -> np.ndarray:
    """A mask file's values, the largest of a colour's three. Raises ShardError, naming the file."""
    try:
        header = open_image_header(path.read_bytes(), name=path.name)
        return np.asarray(header.convert("RGB")).max(2)
    except (SkipSampleError, OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} cannot be read as a mask: {error}") from error
