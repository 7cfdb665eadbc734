"""Import of data sets with one file per mask: DSB 2018 as published, and folders of binary masks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import MaskRecord
from sam_train.rle import encode_rle
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import PairedFolders, files_by_stem, images_by_stem
from sam_train.shards.importers.image_items import DiskFile, ImageItem
from sam_train.shards.importers.importer import importer
from sam_train.shards.importers.label_maps import check_matches_image_size
from sam_train.shards.importers.mask_files import MASK_EXTENSIONS, drop_ignored, label_file_size, read_label_map
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.importers.report import ImportReport


@importer(default_frame="upright")
def import_binary_masks(
    images: Path,
    masks: Path | None = None,
    *,
    name: str = "",
    ignore: tuple[int, ...] = (),
    threshold: int | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    image_extension: str = "",
    min_area: int = 1,
    report: ImportReport,
) -> list[ImageItem]:
    """Import images with one file per mask, in the order of names.

    With --masks, the masks of images/STEM.* are masks/STEM/*.png, masks/STEM_*.png or the single masks/STEM.png. Without, all
    files are in one folder as in DSB 2018: images/STEM/images/* and images/STEM/masks/*.png.

    A mask is a PNG, TIFF, BMP or .npy of the size of the image, with 0 and one other value in one channel, or in equal ones;
    other files, such as JPEG or masks with soft edges, need --threshold. Ids count from 1 in the order of the masks' names.
    Masks without pixels are dropped and counted as "mask_without_pixels".

    Args:
        images: Folder of the images; without --masks also of the masks.
        masks: Folder of the masks; it may be that of the images if --label-suffix tells them apart.

    Raises:
        ShardError: Names the file, for an image without masks or a mask without an image, a mask that may belong to two images,
            has more than two values or another size, and a file that cannot be read.
    """
    class_name = parse_class_name(name, place="--name")
    if masks is None:
        found = list(_in_one_folder(images, report))
    else:
        folders = PairedFolders(
            images,
            masks,
            what="mask",
            extensions=MASK_EXTENSIONS,
            image_suffix=image_suffix,
            label_suffix=label_suffix,
            image_extension=image_extension,
        )
        found = list(_in_two_folders(folders, report))

    def read(paths: list[Path], height: int, width: int) -> Iterator[MaskRecord]:
        for number, path in enumerate(paths, start=1):
            with report.entry("annotation", str(path)):
                mask = _read_mask(path, ignore=ignore, threshold=threshold, report=report)
                check_matches_image_size(path, mask, height=height, width=width)
                yield from _records(mask, number, class_name, min_area, report)

    return [
        ImageItem(
            name=file,
            file=DiskFile(image),
            masks=partial(read, paths),
            declared_size=partial(label_file_size, paths[0]) if paths else (lambda: None),
        )
        for file, image, paths in found
    ]


def _records(mask: np.ndarray, number: int, name: str, min_area: int, report: ImportReport) -> list[MaskRecord]:
    area = int(mask.sum())
    if area < max(min_area, 1):
        report.counts["below_min_area" if area else "mask_without_pixels"] += 1
        return []
    return [mask_record_from_rle(encode_rle(mask), mask_id=number, annotator="binary_masks", name=name)]


def _read_mask(path: Path, *, ignore: tuple[int, ...], threshold: int | None, report: ImportReport) -> np.ndarray:
    values = read_label_map(path, threshold=threshold)
    values = values if threshold is not None else drop_ignored(values, path, ignore, report.counts)
    mask = values != 0
    inside = values[mask]
    if inside.size and (inside != inside[0]).any():
        several = ", ".join(map(str, np.unique(values)[:4]))
        more = "gray edges want --threshold, values that are no object --ignore; see also kind label_maps"
        raise ShardError(f"{path} has the values {several} and perhaps more: expected 0 and one other; {more}")
    return mask


def _in_one_folder(root: Path, report: ImportReport) -> Iterator[tuple[str, Path, list[Path]]]:
    """Yield (name, image, masks) of DSB's folders. The name is that of the folder, which DSB repeats in the file name."""
    if not root.is_dir():
        raise ShardError(f"no such folder: {root}")
    folders = sorted(path.parent for path in root.glob("*/images"))
    if not folders:
        raise ShardError(f"no folders STEM/images and STEM/masks in {root}: give the folder of the masks by --masks")
    for folder in folders:
        with report.entry("image", folder.name):
            images = images_by_stem(folder / "images")
            if len(images) != 1:
                raise ShardError(f"{folder / 'images'} holds {len(images)} images, expected one")
            (image,) = images.values()
            masks = files_by_stem(folder / "masks", MASK_EXTENSIONS) if (folder / "masks").is_dir() else {}
            if not masks:
                report.absent("label_missing", folder.name, f"{folder / 'masks'} holds no masks: expected .png files")
                continue
            yield folder.name + image.suffix, image, [masks[stem] for stem in sorted(masks)]


def _in_two_folders(folders: PairedFolders, report: ImportReport) -> Iterator[tuple[str, Path, list[Path]]]:
    images, masks = folders.files(report)
    masks_by_image: dict[str, list[Path]] = {stem: [] for stem in sorted(images)}
    for stem in sorted(masks):
        candidates = [candidate for candidate in _candidate_images(stem) if candidate in images]
        expected = f"expected STEM/*.png, STEM_*.png or STEM.png for {folders.images}/STEM.*"
        if len(candidates) > 1:
            problem = f"may belong to {' and '.join(candidates)}: use one folder of masks per image"
            with report.entry("annotation", str(masks[stem])):
                raise ShardError(f"{masks[stem]} {problem}; {expected}")
        elif not candidates:
            report.absent("image_missing", str(masks[stem]), f"{masks[stem]} has no image; {expected}")
        else:
            masks_by_image[candidates[0]].append(masks[stem])
    for stem, paths in masks_by_image.items():
        if not paths and not (folders.labels / stem).is_dir():
            expected = f"expected {folders.labels / stem}/*.png, or an empty folder if it has no object"
            report.absent("label_missing", str(images[stem]), f"{images[stem]} has no masks: {expected}")
            continue
        yield folders.name(images[stem]), images[stem], paths


def _candidate_images(stem: str) -> list[str]:
    """Return every image stem that a mask's stem may refer to: itself, its folder, and its prefixes before an underscore."""
    folder, _, name = stem.rpartition("/")
    prefix = folder + "/" if folder else ""
    prefixes = [prefix + name[:index] for index, character in enumerate(name) if character == "_" and index]
    return [stem, *([folder] if folder else []), *prefixes]
