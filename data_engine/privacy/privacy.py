"""What no picture of a run may show, and the pictures that must not be in it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_engine.privacy.detections import Detector
from data_engine.privacy.redaction import MIN_DILATE, REDACTION_METHODS, redact_box
from data_engine.sources import ImageReference, Source
from data_engine.structures import RedactedBox, SourceImage
from sam_train.errors import ConfigError, SkipSampleError
from sam_train.shards import decode_jpeg, done_shards, encode_jpeg, load_manifest
from sam_train.shards.take_down import TAKEN_DOWN, TakeDownList, read_take_down_list


class Privacy:
    """Covers what its detectors find, and leaves out what a take-down list names.

    detectors: by the name of what they find, which goes into the audit and the counts: faces, plates.
    dilate: how much larger than it was found a box is covered, MIN_DILATE at least.
    cells: of a side, see `redact_box`.
    take_down: a text file with an image id or key a line (`read_take_down_list`).

    Raises ConfigError for values out of range and a list that cannot be read.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        method: str = "blur",
        dilate: float = 1.4,
        cells: int = 4,
        take_down: str | None = None,
    ) -> None:
        if method not in REDACTION_METHODS:
            raise ConfigError(f"privacy.method is {method!r}: expected {', '.join(REDACTION_METHODS)}")
        if not MIN_DILATE <= dilate <= 10:
            raise ConfigError(f"privacy.dilate is {dilate}: expected {MIN_DILATE} to 10, so that all that was found is covered")
        if not 1 <= cells <= 8:
            raise ConfigError(f"privacy.cells is {cells}: expected 1 to 8, more of them would show a face")
        self.detectors, self.method, self.dilate, self.cells = dict(detectors), method, dilate, cells
        self.take_down = read_take_down_list(Path(take_down)) if take_down else TakeDownList()

    def redact_source(self, source: Source) -> Source:
        """The same pictures, each covered as soon as it is loaded; loading one that is taken down raises SkipSampleError."""
        return _RedactedSource(references=source.references, skipped=source.skipped, max_pixels=source.max_pixels, privacy=self)

    def redact_image(self, image: SourceImage) -> SourceImage:
        """The picture with everything covered that the detectors find, encoded anew; as it is where they find nothing.

        `image` of what comes back is what its `jpeg` decodes to, so whatever is drawn on it fits what is stored.
        """
        found: list[tuple[str, np.ndarray, float]] = []
        for kind, detector in self.detectors.items():
            seen = detector.detect(image.image)
            found += [(kind, box, float(score)) for box, score in zip(seen.boxes_xyxy, seen.scores, strict=True)]
        if not found:
            return image
        jpeg, covered = self._encoded(image.image, found)
        if not covered:
            return image
        height, width = image.image.shape[:2]
        decoded = decode_jpeg(jpeg, key=image.key, max_pixels=height * width)
        return replace(image, image=decoded, jpeg=jpeg, redacted_boxes=tuple(covered))

    def identity(self) -> str:
        """12 hex digits that change with whatever changes a picture, weights included; "none" when nothing is looked for.

        The take-down list is not in it: names are added to it while a run is going on.
        """
        if not self.detectors:
            return "none"
        parts = [self.method, self.dilate, self.cells, [[kind, d.identity()] for kind, d in self.detectors.items()]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def counts(self, covered: Sequence[RedactedBox]) -> dict[str, float]:
        """What the ledger counts of a picture: boxes by kind, and pictures that were looked at and changed."""
        if not self.detectors:
            return {}
        boxes = Counter(place.kind for place in covered)
        return {
            "privacy/images_searched": 1,
            "privacy/images_covered": int(bool(covered)),
            **{f"privacy/{kind}": boxes[kind] for kind in self.detectors},
        }

    def _encoded(self, image: np.ndarray, found: Sequence[tuple[str, np.ndarray, float]]) -> tuple[bytes, list[RedactedBox]]:
        pixels = image.copy()
        covered = [place for one in found if (place := self._cover(pixels, *one)) is not None]
        return encode_jpeg(pixels), covered

    def _cover(self, pixels: np.ndarray, kind: str, box: np.ndarray, score: float) -> RedactedBox | None:
        place = redact_box(pixels, box, method=self.method, dilate=self.dilate, cells=self.cells)
        if place is None:  # beside the picture
            return None
        left, top, right, bottom = (round(float(side), 2) for side in box)
        return RedactedBox(
            kind=kind,
            score=round(score, 4),
            found_xyxy=(left, top, right, bottom),
            covered_xyxy=place,
            method=self.method,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RedactedSource(Source):
    privacy: Privacy

    def load(self, reference: ImageReference) -> SourceImage:
        """As `Source.load`; one reason more, TAKEN_DOWN."""
        if self.privacy.take_down.contains(key=reference.key, image_id=reference.image_id):
            raise SkipSampleError(TAKEN_DOWN, f"{reference.origin} is on the take-down list", key=reference.key)
        return self.privacy.redact_image(Source.load(self, reference))


def count_listed_images(folder: Path, take_down: Path) -> int:
    """How many images that the list names are in done shards of a folder: they were written before it named them.

    Raises ConfigError for a list that cannot be read, ShardError for a manifest that cannot.
    """
    named = read_take_down_list(take_down)
    found = 0
    for manifest in map(load_manifest, done_shards(folder)):
        image_ids = (manifest.places or {}).get("image_id", [None] * len(manifest.keys))
        found += sum(named.contains(key=key, image_id=number) for key, number in zip(manifest.keys, image_ids, strict=True))
    return found
