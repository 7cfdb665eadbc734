"""Number of clicks that a mask needs: NoC@85 and NoC@90 on GrabCut, Berkeley, DAVIS and data sets of the same form.

The protocol of RITM (Sofiiuk et al. 2021) and SimpleClick: at most 20 clicks, each at the pixel of the false-negative or the
false-positive region that lies farthest from the region's boundary and was not clicked before. The larger distance decides; a tie
gives a background click. The prediction after the first click is the best of three masks by predicted IoU, later the single mask,
with the previous logits as mask prompt.
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
from sam_train.metrics.number_of_clicks import number_of_clicks
from sam_train.prompts.sampling import squared_distance_transform
from sam_train.rle import decode_rle
from sam_train.shards import decode_jpeg
from sam_train.shards.image_io import IMAGE_EXTENSIONS, open_image_header
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem, load_image_or_raise
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.keys import keys_from_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetImage:
    """An image with its target masks and its void pixels."""

    image: np.ndarray
    """H x W x 3 uint8 RGB."""
    targets: Bool[np.ndarray, "N H W"]
    void: Bool[np.ndarray, "H W"]
    """Pixels that are excluded from clicks and IoU."""


class ClicksNeededProtocol(EvaluationProtocol):
    """Number of clicks (NoC) until a mask reaches an IoU, and number of failures (NoF).

    images, masks: folders with one image and one mask per file stem; without them the masks of `shards` are evaluated.
    void_value: gray value of excluded pixels in a mask file; brighter pixels are the target (GrabCut: 128; Berkeley has no void
        pixels). null: every pixel that is not black is the target (DAVIS).
    max_clicks: largest number of clicks, 20 (RITM). thresholds: IoUs to reach, 0.85 and 0.90 (RITM).
    masks_per_image, min_area_px: for shards, the largest number of masks of an image and the smallest area.

    Raises ConfigError if only one of `images` and `masks` is given.
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
        image_files = images_by_stem(Path(self.images))
        mask_files = files_by_stem(Path(self.masks), IMAGE_EXTENSIONS)
        if unpaired := sorted(image_files.keys() ^ mask_files.keys()):
            raise ConfigError(
                f"{unpaired[0]!r} is only in one of {self.images} and {self.masks}: expected one mask per image with its stem"
            )
        stems = sorted(image_files)
        return [
            EvaluationImage(number=number, name=key, source=(image_files[stem], mask_files[stem]))
            for number, (key, stem) in enumerate(zip(keys_from_paths([f"{s}.x" for s in stems]), stems, strict=True), start=1)
        ]

    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        target_image = self._load(image_entry)
        if not len(target_image.targets):
            return {"ious": []}
        predictor.set_image(target_image.image)
        return {"ious": self._simulate_clicks(predictor, target_image)}

    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        ious = [mask for measured in measurements for mask in measured["ious"]]
        if not ious:
            raise ConfigError(
                f"no mask to evaluate in {len(measurements)} images: name other shards, or lower protocol.min_area_px"
            )
        measures: dict[str, float] = {}
        for threshold in self.thresholds:
            percent = f"{threshold * 100:g}"
            noc, num_failures = number_of_clicks(ious, threshold, self.max_clicks)
            measures |= {f"noc_at_{percent}": noc, f"nof_at_{percent}": num_failures}
        measures |= {"miou_at_1": mean([mask[0] for mask in ious]), "num_masks": len(ious), "num_images": len(measurements)}
        return Summary(measures=measures)

    def _simulate_clicks(self, predictor: Predictor, image: TargetImage) -> list[list[float]]:
        """Return the IoU of each target after each click, until it reaches all thresholds."""
        ious: list[list[float]] = [[] for _ in image.targets]
        clicks: list[list[tuple[int, int, bool]]] = [[] for _ in image.targets]
        masks = np.zeros_like(image.targets)
        logits: Tensor | None = None
        active = np.arange(len(image.targets))
        for _ in range(self.max_clicks):
            for n in active:
                clicks[n].append(next_click(masks[n], image.targets[n], image.void, clicks[n]))
            best = self._predict(predictor, [clicks[n] for n in active], logits)
            masks[active] = predictor.masks_to_image(best)[:, 0].cpu().numpy()
            for n in active:
                ious[n].append(iou_outside_void(masks[n], image.targets[n], image.void))
            unfinished = np.array([ious[n][-1] < max(self.thresholds) for n in active], bool)
            if not unfinished.any():
                break
            active, logits = active[unfinished], best[torch.from_numpy(unfinished).to(best.device)]
        return ious

    def _predict(
        self, predictor: Predictor, clicks: Sequence[Sequence[tuple[int, int, bool]]], logits: Tensor | None
    ) -> Float[Tensor, "N 1 h w"]:
        points = torch.tensor([[click[:2] for click in mask] for mask in clicks], dtype=torch.float32)
        labels = torch.tensor([[int(click[2]) for click in mask] for mask in clicks])
        prompts = make_prompts(points_xy=points, point_labels=labels, mask_logits=logits, device=predictor.device)
        return predictor.predict_prompts(prompts, multimask_output=logits is None).best().mask_logits

    def _load(self, image_entry: EvaluationImage) -> TargetImage:
        if isinstance(image_entry.source, tuple):
            return self._load_files(*image_entry.source, key=image_entry.name)
        sample = load_sample(image_entry)
        height, width = sample.record.height, sample.record.width
        large = [mask for mask in sample.record.masks if mask.area >= self.min_area_px][: self.masks_per_image]
        targets = [decode_rle(mask.segmentation, height=height, width=width, key=sample.record.key) for mask in large]
        return TargetImage(
            image=decode_jpeg(sample.jpeg, shard=sample.shard, key=sample.record.key),
            targets=np.stack(targets) if targets else np.zeros((0, height, width), bool),
            void=np.zeros((height, width), bool),
        )

    def _load_files(self, image: Path, mask: Path, *, key: str) -> TargetImage:
        pixels, values = load_image_or_raise(image, key=key).image, _read_gray(mask)
        check_matches_image_size(mask, values, height=pixels.shape[0], width=pixels.shape[1], key=key)
        above = 0 if self.void_value is None else self.void_value
        target = values > above
        if not target.any():
            raise ShardError(f"{mask} has no pixel above {above}, so no target: see protocol.void_value", key=key)
        void = np.zeros(values.shape, bool) if self.void_value is None else values == self.void_value
        return TargetImage(image=pixels, targets=target[None], void=void)


def next_click(
    mask: Bool[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"],
    void: Bool[np.ndarray, "H W"],
    earlier_clicks: Sequence[tuple[int, int, bool]],
) -> tuple[int, int, bool]:
    """Return column and row of the next click, and whether it is a foreground click, as RITM's `Clicker` places it."""
    false_negative, false_positive = (_depth(region & ~void, earlier_clicks) for region in (target & ~mask, mask & ~target))
    foreground = bool(false_negative.max() > false_positive.max())
    deepest = (false_negative if foreground else false_positive).argmax()
    row, column = divmod(int(deepest), mask.shape[1])
    return column, row, foreground


def iou_outside_void(mask: Bool[np.ndarray, "H W"], target: Bool[np.ndarray, "H W"], void: Bool[np.ndarray, "H W"]) -> float:
    """Return the IoU over all pixels that are not void."""
    return float((mask & target & ~void).sum() / max(1, ((mask | target) & ~void).sum()))


def _depth(region: Bool[np.ndarray, "H W"], clicked: Sequence[tuple[int, int, bool]]) -> Int[np.ndarray, "H W"]:
    """Return the squared distance of each pixel to the boundary of the region, and 0 at earlier clicks."""
    depth = squared_distance_transform(region)
    for column, row, _ in clicked:
        depth[row, column] = 0
    return depth


def _read_gray(path: Path) -> np.ndarray:
    """Return the gray values of a mask file, the largest channel of a colour. Raises ShardError with the file's name."""
    try:
        header = open_image_header(path.read_bytes(), name=path.name)
        return np.asarray(header.convert("RGB")).max(2)
    except (SkipSampleError, OSError, SyntaxError, ValueError) as error:
        raise ShardError(f"{path} cannot be read as a mask: {error}") from error
