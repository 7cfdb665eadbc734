"""Import of Pascal VOC's segmentations, in the layout of the challenge and of the tools that export it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.rle import encode_rle
from sam_train.shards.importers.colour_masks import Colours, colours_to_indices, read_colour_file, voc_colour
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_files import is_palette, label_file_size, read_colours, read_label_map
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255
_BY_COLOUR = {voc_colour(index): index for index in range(256)}


@importer(default_frame="upright")
def import_voc(source: Path, *, image_set: str = "", min_area: int = 1, report: ImportReport) -> list[ImageItem]:
    """Import the segmentations of a folder in Pascal VOC's layout, in the order of names.

    JPEGImages holds the images, SegmentationObject the instances and SegmentationClass the classes of their pixels; without
    SegmentationObject, each class of an image is one mask. Maps are PNGs with VOC's palette or in its colours; 255, the border of
    objects, is void and belongs to no mask. labelmap.txt, as CVAT and Datumaro write it, gives other classes and colours. An
    image without a map is counted as "image_without_labels" and left out: most of VOC have none.

    Args:
        source: Folder with JPEGImages, SegmentationClass and SegmentationObject, such as VOCdevkit/VOC2012.
        image_set: Name of a list in ImageSets/Segmentation, such as train; without it all images with a map.

    Raises:
        ShardError: Names the file, for a map without an image, a pair of different sizes, a colour of no class, and a file that
            cannot be read.
    """
    folders = {name: source / name for name in ("JPEGImages", "SegmentationObject", "SegmentationClass")}
    images = images_by_stem(folders["JPEGImages"], report=report)
    objects, classes = (
        files_by_stem(folder, (".png",), report=report) if folder.is_dir() else {}
        for folder in (folders["SegmentationObject"], folders["SegmentationClass"])
    )
    if not objects and not classes:
        raise ShardError(f"no maps in {folders['SegmentationObject']} and {folders['SegmentationClass']}: expected STEM.png")
    labelmap = source / "labelmap.txt"
    colours: Colours = {voc_colour(index): (index, name) for index, name in enumerate(VOC_CLASSES)}
    colours = read_colour_file(labelmap) if labelmap.is_file() else colours
    report.categories.update({number: name for number, name in colours.values() if name != "background"})
    wanted = set(images) if not image_set else _image_set(source, image_set)
    labelled = objects.keys() | classes.keys()
    for stem in sorted((labelled if not image_set else wanted) - images.keys()):
        report.absent("image_missing", stem, f"{stem} has no image: expected {folders['JPEGImages'] / stem}.jpg")
    unlabelled = len(images.keys() & wanted - labelled)
    report.counts.update({"image_without_labels": unlabelled} if unlabelled else {})
    return [
        ImageItem(
            name=images[stem].relative_to(folders["JPEGImages"]).as_posix(),
            file=DiskFile(images[stem]),
            masks=partial(_masks, objects.get(stem), classes.get(stem), colours, min_area, report),
            declared_size=partial(label_file_size, objects.get(stem) or classes[stem]),
        )
        for stem in sorted(images.keys() & labelled & wanted)
    ]


def _image_set(source: Path, name: str) -> set[str]:
    path = source / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not name.replace("_", "").replace("-", "").isalnum() or not path.is_file():
        raise ShardError(f"--image-set {name!r}: no such file: {path}")
    return {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def _masks(
    instances: Path | None,
    classes: Path | None,
    colours: Colours,
    min_area: int,
    report: ImportReport,
    height: int,
    width: int,
) -> Iterator[MaskRecord]:
    names, class_map = dict(colours.values()), None
    if classes is not None:
        class_map = _indices(classes, {colour: number for colour, (number, _) in colours.items()})
        check_matches_image_size(classes, class_map, height=height, width=width)
    ids = class_map if instances is None else _indices(instances, _BY_COLOUR)
    assert ids is not None, "an image without maps is left out"
    check_matches_image_size(instances or classes or Path(), ids, height=height, width=width)
    for value, area in zip(*np.unique(ids, return_counts=True), strict=True):
        if value in (0, _VOID) or (instances is None and names.get(int(value)) == "background"):
            continue
        if area < min_area:
            report.counts["below_min_area"] += 1
            continue
        mask = ids == value
        number = int(value) if instances is None else _most_frequent(class_map, mask)
        report.counts.update(["category_unknown"] if number not in names else [])
        yield mask_record_from_rle(encode_rle(mask), mask_id=int(value), annotator="voc", name=names.get(number, ""))


def _indices(path: Path, by_colour: dict[tuple[int, int, int], int]) -> np.ndarray:
    """Return the index of each pixel: that of the palette, or that of its colour."""
    if is_palette(path):
        return read_label_map(path)
    try:
        values = read_colours(path)
    except ShardError:
        return read_label_map(path)
    return colours_to_indices(values, {(224, 224, 192): _VOID, **by_colour}, place=str(path))


def _most_frequent(class_map: np.ndarray | None, mask: np.ndarray) -> int:
    """Return the class of most pixels of an instance, -1 if there is none."""
    if class_map is None:
        return -1
    values, counts = np.unique(class_map[mask & (class_map != _VOID)], return_counts=True)
    return int(values[counts.argmax()]) if len(values) else -1
