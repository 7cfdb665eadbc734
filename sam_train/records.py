"""Records on disk: an image and its masks as in SA-1B's JSON, with its keys.

Each annotation may carry the additional key `provenance`, which other readers ignore. Any other missing or unknown key raises
ShardError with the sample's key and the field, because a lenient reader would lose masks silently.
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

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""Valid sample keys. A key becomes a file name and a tar member name: letters, digits, dash and underscore cannot leave a
folder, and a dot is excluded because webdataset splits member names at the first one."""

MAX_PIXELS = 200_000_000
"""Default of the largest height x width that is decoded; a few bytes can claim any size."""

Rle = dict[str, Any]
"""COCO compressed RLE: {"size": [height, width], "counts": str}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Origin of a mask: by which stage, model and annotator it was produced."""

    stage: str
    """Engine stage, or "import" for masks that came with a dataset."""
    checkpoint: str
    """SHA-256 of the checkpoint that was used, empty if none was."""
    annotator: str
    """"automatic", "simulated", a person's id, or the importer's name."""
    config: str
    """Hash of the resolved config of the run that produced the mask."""
    prompts: list[list[float]] = field(default_factory=list)
    """[x, y, label] in the image frame, labels as PointLabel."""
    seconds: float = 0.0
    """Annotation time of this mask: measured for a person, or from a documented cost model."""
    parent: int | None = None
    """`id` of the smallest mask of the image that contains it, so that whole, part and sub-part form a chain. None, and absent
    from the JSON, if there is no such mask or containment was not computed."""
    name: str = ""
    """Class name or caption of the mask, as its dataset states it. Empty, and absent from the JSON, if unknown: SA-1B has no
    classes."""
    origin: str = ""
    """Manner in which an annotator produced the mask: "accepted" as it was proposed, "edited" (proposed or clicked, then changed
    by hand), "clicked" with prompts alone, "drawn" with the brush. Empty, and absent from the JSON with the next two, if no
    annotator is known."""
    clicks: int | None = None
    """Number of clicks and boxes, including corrections and undone ones."""
    strokes: int | None = None
    """Number of brush and eraser strokes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRecord:
    """One mask in the image frame. `bbox` and `crop_box` are XYWH in pixels, `area` in pixels, `point_coords` lists [x, y]."""

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
        """Class name or caption of the mask from its provenance; empty if unknown."""
        return self.provenance.name if self.provenance else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image and its masks. `key` is the tar member name without its extension.

    Raises ShardError for an invalid key or an image size that a JPEG cannot have.
    """

    key: str
    image_id: int
    width: int
    height: int
    masks: list[MaskRecord]
    source_file: str = field(default="", compare=False)
    """Path, relative to its data set, of the file from which the image was imported; empty if unknown. It is stored in the
    manifest and the mask table, not in the JSON, whose keys are SA-1B's."""

    def __post_init__(self) -> None:
        check_key(self.key)
        check_image_size(self.width, self.height, key=self.key)

    def to_json(self) -> bytes:
        """Return SA-1B's JSON of this image, UTF-8 without spaces; equal records give equal bytes."""
        image = {"image_id": self.image_id, "width": self.width, "height": self.height, "file_name": f"{self.key}.jpg"}
        document = {"image": image, "annotations": [_without_empty_provenance(mask) for mask in self.masks]}
        return json.dumps(document, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes, *, key: str, shard: str = "") -> ImageRecord:
        """Parse SA-1B JSON. Raises ShardError (shard, key, field) for anything that violates the schema."""
        check_key(key, shard=shard)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"not JSON: {error}", shard=shard, key=key) from error
        top = _check_object(document, {"image": dict, "annotations": list}, shard=shard, key=key, path="")
        image = _check_object(top["image"], _IMAGE_SCHEMA, shard=shard, key=key, path="image.")
        check_image_size(image["width"], image["height"], key=key, shard=shard)
        return ImageRecord(
            key=key,
            image_id=image["image_id"],
            width=image["width"],
            height=image["height"],
            masks=[
                _mask_from_json(mask, shard=shard, key=key, path=f"annotations[{index}].")
                for index, mask in enumerate(top["annotations"])
            ],
        )


def check_key(key: str, *, shard: str = "") -> None:
    """Raise ShardError unless `key` is a valid tar member name and file name, see `KEY_PATTERN`."""
    if not KEY_PATTERN.fullmatch(key):
        message = f"key {key[:80]!r} is not 1 to 200 letters, digits, '_' or '-': rename the image or import it again"
        raise ShardError(message, shard=shard)


def check_image_size(width: int, height: int, *, key: str, shard: str = "") -> None:
    """Raise ShardError (field) unless a JPEG can have this width and height in pixels."""
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= _MAX_SIDE_PX:
            message = f"expected 1 to {_MAX_SIDE_PX} pixels, the limit of JPEG, got {reprlib.repr(side)}"
            raise ShardError(message, shard=shard, key=key, field=f"image.{name}")


_MAX_SIDE_PX = 65_535
_Schema = Mapping[str, "type | tuple[type, ...] | _NumberList"]
"""Expected type of each key of a JSON object."""
_NUMBER = (int, float)


@dataclass(frozen=True, slots=True)
class _NumberList:
    """Type of a list of `length` finite numbers or, with `rows`, of a list of any number of such lists."""

    length: int
    rows: bool = False

    def __str__(self) -> str:
        return f"{'lists' if self.rows else 'a list'} of {self.length} finite numbers"

    def matches(self, value: Any) -> bool:
        if not isinstance(value, list):
            return False
        return all(self._matches_row(row) for row in value) if self.rows else self._matches_row(value)

    def _matches_row(self, row: Any) -> bool:
        return isinstance(row, list) and len(row) == self.length and all(_is_finite(number) for number in row)


_IMAGE_SCHEMA: _Schema = {"image_id": int, "width": int, "height": int, "file_name": str}
_RLE_SCHEMA: _Schema = {"size": _NumberList(2), "counts": str}
_MASK_SCHEMA: _Schema = {
    "id": int,
    "segmentation": dict,
    "bbox": _NumberList(4),
    "area": int,
    "predicted_iou": _NUMBER,
    "stability_score": _NUMBER,
    "crop_box": _NumberList(4),
    "point_coords": _NumberList(2, rows=True),
}
MASK_KEYS = tuple(_MASK_SCHEMA)
"""Keys of an annotation in SA-1B's JSON."""
_PROVENANCE_SCHEMA: _Schema = {
    "stage": str,
    "checkpoint": str,
    "annotator": str,
    "config": str,
    "prompts": _NumberList(3, rows=True),
    "seconds": _NUMBER,
}
_OPTIONAL_PROVENANCE_SCHEMA: _Schema = {"parent": int, "name": str, "origin": str, "clicks": int, "strokes": int}


def _mask_from_json(value: Any, *, shard: str, key: str, path: str) -> MaskRecord:
    provenance = None
    if isinstance(value, dict) and "provenance" in value:
        value = dict(value)
        stored = value.pop("provenance")
        optional = {k: v for k, v in _OPTIONAL_PROVENANCE_SCHEMA.items() if isinstance(stored, dict) and k in stored}
        fields = _check_object(stored, {**_PROVENANCE_SCHEMA, **optional}, shard=shard, key=key, path=path + "provenance.")
        provenance = Provenance(**fields)
    fields = _check_object(value, _MASK_SCHEMA, shard=shard, key=key, path=path)
    _check_object(fields["segmentation"], _RLE_SCHEMA, shard=shard, key=key, path=path + "segmentation.")
    return MaskRecord(**fields, provenance=provenance)


def _check_object(value: Any, schema: _Schema, *, shard: str, key: str, path: str) -> dict[str, Any]:
    """Return a JSON object that has exactly the keys and types of `schema`; `path` is its location, ending in a dot."""
    if not isinstance(value, dict):
        raise ShardError(f"expected an object, got {type(value).__name__}", shard=shard, key=key, field=path.rstrip("."))
    for name in schema:
        if name not in value:
            raise ShardError("missing key", shard=shard, key=key, field=path + name)
    for name, item in value.items():
        if name not in schema:
            raise ShardError(f"unknown key (known: {', '.join(schema)})", shard=shard, key=key, field=path + name)
        if (mismatch := _type_mismatch(item, schema[name])) is not None:
            raise ShardError(mismatch, shard=shard, key=key, field=path + name)
    return value


def _type_mismatch(item: Any, expected: type | tuple[type, ...] | _NumberList) -> str | None:
    """Return a message if `item` is not of the expected type, else None."""
    if isinstance(expected, _NumberList):
        return None if expected.matches(item) else f"expected {expected}, got {reprlib.repr(item)[:80]}"
    if not isinstance(item, expected) or isinstance(item, bool):
        return f"unexpected type {type(item).__name__}"
    if isinstance(item, str) and not _is_utf8_encodable(item):
        return f"expected text, got an unpaired surrogate in {reprlib.repr(item)}"
    if isinstance(item, _NUMBER) and not _is_finite(item):
        return f"expected a finite number, integers within 64 bits, got {reprlib.repr(item)[:80]}"
    return None


def _is_utf8_encodable(item: str) -> bool:
    """Return whether a string has no unpaired surrogate, such as JSON's \\ud800 alone."""
    return item.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in item)


def _is_finite(number: Any) -> bool:
    if isinstance(number, float):
        return math.isfinite(number)
    # Arrays, tensors and most JSON readers hold integers of 64 bits; Python's float() rejects larger ones too.
    return type(number) is int and -(2**63) <= number < 2**63


def _without_empty_provenance(mask: MaskRecord) -> dict[str, Any]:
    value = asdict(mask)
    if mask.provenance is None:
        del value["provenance"]
        return value
    for name, default in (("parent", None), ("name", ""), ("origin", ""), ("clicks", None), ("strokes", None)):
        if value["provenance"][name] == default:
            del value["provenance"][name]
    return value
