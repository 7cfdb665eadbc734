"""The nouns on disk: an image and its masks as SA-1B's JSON has them, keys verbatim.

One key is ours: each annotation may carry `provenance`, which other readers ignore. Whatever else is
missing or unknown is a ShardError that names key and field, because a reader that guesses loses masks.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sam_train.errors import ShardError

# A key becomes a file name and a tar member: letters, digits, dash and underscore, so it can never climb out
# of a folder; no dot, because webdataset splits member names at the first one.
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")

MAX_PIXELS = 200_000_000
"""Height times width of the largest image that is decoded, unless a caller says otherwise: a few bytes can claim any size."""

Rle = dict[str, Any]
"""COCO compressed RLE: {"size": [height, width], "counts": str}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a mask comes from."""

    stage: str
    """Engine stage, or "import" for masks that came with a data set."""
    checkpoint: str
    """SHA-256 of the checkpoint that helped, empty when none did."""
    annotator: str
    """"automatic", "simulated", a person's id, or the importer's name."""
    config: str
    """Hash of the resolved config that made it."""
    prompts: list[list[float]] = field(default_factory=list)
    """[x, y, label] in the image frame, labels as PointLabel."""
    seconds: float = 0.0
    """Time spent on this mask, by a person or by a stated cost model."""
    parent: int | None = None
    """`id` of the smallest mask of the image that contains it: sub-part, part and whole are a chain. Absent from the JSON where
    there is none, or nobody looked."""
    name: str = ""
    """What the mask shows, in words: the category that a data set gave it, or a caption. Empty, and absent from the JSON, where
    nobody said: SA-1B has no classes, and no class is made up."""
    origin: str = ""
    """How a person came to it: "accepted" as it was proposed, "edited" (proposed or clicked, then changed by hand), "clicked" by
    prompts alone, "drawn" with the brush. Empty, and absent from the JSON with the next two, where no person is known of."""
    clicks: int | None = None
    """Clicks and boxes that it took, corrections and what was undone included."""
    strokes: int | None = None
    """Strokes of brush and eraser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRecord:
    """One mask, image frame. `bbox` and `crop_box` are XYWH in pixels, `area` in pixels."""

    id: int
    segmentation: Rle
    bbox: list[float]
    area: int
    predicted_iou: float
    stability_score: float
    crop_box: list[float]
    point_coords: list[list[float]]
    provenance: Provenance | None = None

    @property
    def name(self) -> str:
        """What it shows, as its provenance says; empty where nobody said."""
        return self.provenance.name if self.provenance else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image and its masks. `key` is the member name in the tar without its extension."""

    key: str
    image_id: int
    width: int
    height: int
    masks: list[MaskRecord]

    def __post_init__(self) -> None:
        check_key(self.key)
        check_image_size(self.width, self.height, key=self.key)

    def to_json(self) -> bytes:
        """SA-1B's JSON for this image, UTF-8, no spaces, so equal records give equal bytes."""
        image = {"image_id": self.image_id, "width": self.width, "height": self.height, "file_name": f"{self.key}.jpg"}
        document = {"image": image, "annotations": [_without_empty_provenance(mask) for mask in self.masks]}
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, *, key: str, shard: str = "") -> ImageRecord:
        """Parse SA-1B JSON. Raises ShardError (shard, key, field) for anything the schema does not say."""
        check_key(key, shard=shard)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"not JSON: {error}", shard=shard, key=key) from error
        top = _take(document, {"image": dict, "annotations": list}, shard=shard, key=key, place="")
        image = _take(top["image"], _IMAGE_SCHEMA, shard=shard, key=key, place="image.")
        check_image_size(image["width"], image["height"], key=key, shard=shard)
        return ImageRecord(
            key=key,
            image_id=image["image_id"],
            width=image["width"],
            height=image["height"],
            masks=[
                _mask_from_json(mask, shard=shard, key=key, place=f"annotations[{index}].")
                for index, mask in enumerate(top["annotations"])
            ],
        )


def check_key(key: str, *, shard: str = "") -> None:
    """Raise ShardError unless `key` is a name that can be a tar member and a file name anywhere."""
    if not KEY_PATTERN.fullmatch(key):
        message = f"key {key[:80]!r} is not 1 to 200 letters, digits, '_' or '-': rename the image or import it again"
        raise ShardError(message, shard=shard)


def check_image_size(width: int, height: int, *, key: str, shard: str = "") -> None:
    """Raise ShardError (field) unless a JPEG can have these sides."""
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= _MAX_SIDE_PX:
            message = f"expected 1 to {_MAX_SIDE_PX} pixels, as a JPEG can have, got {reprlib.repr(side)}"
            raise ShardError(message, shard=shard, key=key, field=f"image.{name}")


_MAX_SIDE_PX = 65_535
_Schema = Mapping[str, "type | tuple[type, ...] | _Numbers"]
_NUMBER = (int, float)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A list of `length` finite numbers, or with `rows` a list of any number of such lists."""

    length: int
    rows: bool = False

    def __str__(self) -> str:
        return f"{'lists' if self.rows else 'a list'} of {self.length} finite numbers"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, list):
            return False
        return all(self._fits(row) for row in value) if self.rows else self._fits(value)

    def _fits(self, row: Any) -> bool:
        return isinstance(row, list) and len(row) == self.length and all(_is_finite(number) for number in row)


_IMAGE_SCHEMA: _Schema = {"image_id": int, "width": int, "height": int, "file_name": str}
_RLE_SCHEMA: _Schema = {"size": _Numbers(2), "counts": str}
_MASK_SCHEMA: _Schema = {
    "id": int,
    "segmentation": dict,
    "bbox": _Numbers(4),
    "area": int,
    "predicted_iou": _NUMBER,
    "stability_score": _NUMBER,
    "crop_box": _Numbers(4),
    "point_coords": _Numbers(2, rows=True),
}
_PROVENANCE_SCHEMA: _Schema = {
    "stage": str,
    "checkpoint": str,
    "annotator": str,
    "config": str,
    "prompts": _Numbers(3, rows=True),
    "seconds": _NUMBER,
}
_OPTIONAL: _Schema = {"parent": int, "name": str, "origin": str, "clicks": int, "strokes": int}
"""Of provenance, too."""


def _mask_from_json(value: Any, *, shard: str, key: str, place: str) -> MaskRecord:
    provenance = None
    if isinstance(value, dict) and "provenance" in value:
        value = dict(value)
        written = value.pop("provenance")
        some = {k: v for k, v in _OPTIONAL.items() if isinstance(written, dict) and k in written}
        taken = _take(written, {**_PROVENANCE_SCHEMA, **some}, shard=shard, key=key, place=place + "provenance.")
        provenance = Provenance(**taken)
    taken = _take(value, _MASK_SCHEMA, shard=shard, key=key, place=place)
    _take(taken["segmentation"], _RLE_SCHEMA, shard=shard, key=key, place=place + "segmentation.")
    return MaskRecord(**taken, provenance=provenance)


def _take(value: Any, schema: _Schema, *, shard: str, key: str, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShardError(f"expected an object, got {type(value).__name__}", shard=shard, key=key, field=place.rstrip("."))
    for name in schema:
        if name not in value:
            raise ShardError("missing key", shard=shard, key=key, field=place + name)
    for name, item in value.items():
        if name not in schema:
            raise ShardError(f"unknown key (known: {', '.join(schema)})", shard=shard, key=key, field=place + name)
        if (problem := _problem(item, schema[name])) is not None:
            raise ShardError(problem, shard=shard, key=key, field=place + name)
    return value


def _problem(item: Any, expected: type | tuple[type, ...] | _Numbers) -> str | None:
    if isinstance(expected, _Numbers):
        return None if expected.fits(item) else f"expected {expected}, got {reprlib.repr(item)[:80]}"
    if not isinstance(item, expected) or isinstance(item, bool):
        return f"unexpected type {type(item).__name__}"
    if isinstance(item, str) and not _is_text(item):
        return f"expected text, got half a surrogate pair in {reprlib.repr(item)}"
    if isinstance(item, _NUMBER) and not _is_finite(item):
        return f"expected a finite number, whole ones of 64 bits, got {reprlib.repr(item)[:80]}"
    return None


def _is_text(item: str) -> bool:
    """Whether it can be written as UTF-8: JSON's \\ud800 alone cannot."""
    return item.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in item)


def _is_finite(number: Any) -> bool:
    if isinstance(number, float):
        return math.isfinite(number)
    # Arrays, tensors and most readers of JSON in other languages hold no more; Python's float() does not take any int.
    return type(number) is int and -(2**63) <= number < 2**63


def _without_empty_provenance(mask: MaskRecord) -> dict[str, Any]:
    value = asdict(mask)
    if mask.provenance is None:
        del value["provenance"]
        return value
    for name, absent in (("parent", None), ("name", ""), ("origin", ""), ("clicks", None), ("strokes", None)):
        if value["provenance"][name] == absent:
            del value["provenance"][name]
    return value
