"""The contract of all importers: shared options, wrong and missing entries, the frame of annotations, ids and source files.

An importer lists `ImageItem`s; the decorator `importer` turns it into a generator of records, so that every option below has the
same meaning for every kind. Each file found and each annotation read is imported, refused by name, or counted by reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, get_type_hints

from sam_train.errors import ShardError, SkipSampleError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.image_io import DecodedImage, decode_image, has_exif, open_image_header
from sam_train.shards.importers.frames import Frame, FrameDecision
from sam_train.shards.importers.image_items import ImageItem
from sam_train.shards.importers.report import ImportReport, Policy
from sam_train.shards.keys import image_id_from_path, keys_from_paths

Importer = Callable[..., Iterator[tuple[ImageRecord, bytes]]]

SHARED_OPTIONS: Mapping[str, str] = {
    "missing": "Action for an image or a label file whose counterpart does not exist; leave_out names and counts each.",
    "bad": "Action for an image or an annotation that is wrong; leave_out names and counts each, in the manifests too.",
    "frame": "Pixels to which annotations refer if an image has an EXIF orientation: as stored, upright, or auto, one decision "
    "per data set from the images whose size tells.",
    "image_suffix": "End of the images' names between STEM and the extension.",
    "label_suffix": "End of the label files' names between STEM and the extension.",
    "image_extension": "Extension of the images, such as .jpg, if other files in the folder have an extension of an image too.",
    "ignore": "Values of label files that are no object; each is counted as ignored_value.",
    "threshold": "Pixels above this value are the mask, for masks with gray levels, such as JPEG; without it they are refused.",
    "min_area": "Area in pixels below which a mask is dropped and counted as below_min_area.",
    "name": "Class name of every mask, such as 'nucleus'.",
    "drop_crowd": "Drop annotations of groups, with iscrowd=1, and count them as crowd.",
}
"""Help text of each option that means the same for every kind."""

_ADDED: Mapping[str, Any] = {"missing": Policy, "bad": Policy, "frame": Literal["auto", "stored", "upright"]}
_DEFAULTS = {"missing": "stop", "bad": "stop", "frame": "auto"}


def importer(default_frame: Frame) -> Callable[[Callable[..., Iterable[ImageItem]]], Importer]:
    """Make an importer from a function that lists the items of a data set.

    The function takes a keyword `report`, an `ImportReport`, and returns a list, or another collection that can be iterated
    several times if its items have keys. `default_frame` applies if --frame auto finds no image that tells. The result has the
    options --missing, --bad and --frame too, and yields (record, JPEG) of each image.
    """

    def decorate(list_items: Callable[..., Iterable[ImageItem]]) -> Importer:
        @wraps(list_items)
        def run(
            *args: Any,
            missing: Policy = "stop",
            bad: Policy = "stop",
            frame: Frame | Literal["auto"] = "auto",
            report: ImportReport | None = None,
            **options: Any,
        ) -> Iterator[tuple[ImageRecord, bytes]]:
            report = ImportReport() if report is None else report
            report.missing, report.bad = missing, bad
            items = list_items(*args, **options, report=report)
            yield from build_records(items, frame=frame, default_frame=default_frame, report=report)

        _describe(run, list_items)
        return run

    return decorate


def build_records(
    items: Iterable[ImageItem], *, frame: Frame | Literal["auto"], default_frame: Frame, report: ImportReport
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Yield record and JPEG of each item, in order; a wrong or missing one is handled as `report` says."""
    keyed = _with_keys(items, report) if isinstance(items, list) else items
    decision = FrameDecision(frame, default=default_frame, items=keyed, report=report)
    for item in keyed:
        if not item.file.exists():
            report.absent("image_missing", item.name, f"no such image: {item.file}, which the annotations name")
            continue
        result = None
        with report.entry("image", item.name):
            result = _record(item, decision, report)
        if result is not None:
            yield result


def _with_keys(items: list[ImageItem], report: ImportReport) -> list[ImageItem]:
    """Return the items with keys, without those whose name occurred before."""
    unique: dict[str, ImageItem] = {}
    for item in items:
        with report.entry("image", f"{item.name} (again)"):
            if item.name in unique:
                raise ShardError(f"{item.name} is listed twice: every image needs its own entry")
            unique[item.name] = item
    keys = keys_from_paths(list(unique))
    return [item if item.key else replace(item, key=key) for key, item in zip(keys, unique.values(), strict=True)]


def _record(item: ImageItem, decision: FrameDecision, report: ImportReport) -> tuple[ImageRecord, bytes]:
    decoded = _decode(item, decision)
    height, width = decoded.image.shape[:2]
    masks = _with_unique_ids(list(item.masks(height, width)), report)
    image_id = image_id_from_path(item.name) if item.image_id is None else item.image_id
    record = ImageRecord(key=item.key, image_id=image_id, width=width, height=height, masks=masks, source_file=item.name)
    return record, decoded.jpeg


def _decode(item: ImageItem, decision: FrameDecision) -> DecodedImage:
    data = item.file.read()
    try:
        header = open_image_header(data, key=item.key, name=item.name)
        is_upright = not has_exif(data) or decision.is_upright(header)
        return decode_image(data, key=item.key, name=item.name, apply_orientation=is_upright)
    except SkipSampleError as error:
        raise ShardError(f"{item.file}: {error}; repair the file, or remove it and its masks") from error


def _with_unique_ids(masks: list[MaskRecord], report: ImportReport) -> list[MaskRecord]:
    """Return the masks with ids that are unique in their image; changed ones are counted as "mask_id_changed"."""
    if len({mask.id for mask in masks}) == len(masks):
        return masks
    used: set[int] = set()
    following = max(mask.id for mask in masks) + 1
    unique = []
    for mask in masks:
        if mask.id in used:
            report.counts["mask_id_changed"] += 1
            unique.append(replace(mask, id=following))
            following += 1
        else:
            unique.append(mask)
        used.add(unique[-1].id)
    return unique


def check_declared_size(name: str, size: tuple[int, int], *, height: int, width: int) -> None:
    """Raise ShardError, naming the image, unless it has the (width, height) that its annotations declare."""
    if size != (width, height):
        declared = f"its annotations declare {size[0]} x {size[1]}"
        raise ShardError(f"{name} is {width} x {height}, {declared}: they must agree (see also --frame)")


def _describe(run: Callable[..., Any], list_items: Callable[..., Any]) -> None:
    """Give the importer the signature and the `Args:` section from which the command line is derived."""
    signature = inspect.signature(list_items)
    own = [parameter for name, parameter in signature.parameters.items() if name != "report"]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=_DEFAULTS[name], annotation=_ADDED[name]) for name in _ADDED]
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    types = get_type_hints(list_items)
    run.__annotations__ = {**{p.name: types[p.name] for p in own}, **_ADDED}
    shared = [f"    {name}: {text}" for name, text in SHARED_OPTIONS.items() if name in run.__annotations__]
    head, marker, tail = (inspect.getdoc(list_items) or "").partition("\n\nRaises:")
    head = head if "\n\nArgs:" in head else f"{head}\n\nArgs:"
    run.__doc__ = head + "\n" + "\n".join(shared) + marker + tail
