"""Import of data sets with one file per mask: DSB 2018 as published, and folders of binary masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord
from sam_train.rle import encode_rle
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem, load_image_or_raise
from sam_train.shards.importers.label_maps import check_matches_image_size, read_label_map
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.keys import image_id_from_path, keys_from_paths


def import_binary_masks(
    images: Path, masks: Path | None = None, *, name: str = "", min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Import images with one PNG per mask, in the order of names.

    With --masks, the masks of images/STEM.* are masks/STEM/*.png, masks/STEM_*.png or the single masks/STEM.png. Without, all
    files are in one folder as in DSB 2018: images/STEM/images/* and images/STEM/masks/*.png.

    A mask is a PNG with one channel, 0 and one other value, of the size of the upright image. Ids count from 1 in the order of
    the masks' names. Masks without pixels are dropped and counted as "mask_without_pixels", others below --min-area as
    "below_min_area".

    Args:
        images: Folder of the images; without --masks also of the masks.
        masks: Folder of the masks.
        name: Class name of every mask, such as "nucleus".
        min_area: Area in pixels below which a mask is dropped.

    Raises:
        ShardError: Names the file, for an image without masks or a mask without an image, a mask that may belong to two images,
            has more than two values or another size, and a file that cannot be read.
    """
    counts = Counter() if counts is None else counts
    class_name = parse_class_name(name, place="--name")
    images_and_masks = _in_one_folder(images) if masks is None else _in_two_folders(images, masks)
    keys = keys_from_paths([name for name, _, _ in images_and_masks])
    for key, (file, image_path, mask_paths) in zip(keys, images_and_masks, strict=True):
        decoded = load_image_or_raise(image_path, key=key)
        height, width = decoded.image.shape[:2]
        records = []
        for number, path in enumerate(mask_paths, start=1):
            mask = _read_mask(path)
            check_matches_image_size(path, mask, height=height, width=width, key=key)
            records += _records(mask, number, class_name, min_area, counts)
        yield ImageRecord(key=key, image_id=image_id_from_path(file), width=width, height=height, masks=records), decoded.jpeg


def _records(mask: np.ndarray, number: int, name: str, min_area: int, counts: Counter[str]) -> list[MaskRecord]:
    area = int(mask.sum())
    if area < max(min_area, 1):
        counts["below_min_area" if area else "mask_without_pixels"] += 1
        return []
    return [mask_record_from_rle(encode_rle(mask), mask_id=number, annotator="binary_masks", name=name)]


def _read_mask(path: Path) -> np.ndarray:
    values = read_label_map(path)
    mask = values != 0
    inside = values[mask]
    if inside.size and (inside != inside[0]).any():
        several = ", ".join(map(str, np.unique(values)[:4]))
        raise ShardError(f"{path} has the values {several} and perhaps more: expected 0 and one other; see also kind label_maps")
    return mask


def _in_one_folder(root: Path) -> list[tuple[str, Path, list[Path]]]:
    """Return (name, image, masks) of DSB's folders. The name is that of the folder, which DSB repeats in the file name."""
    if not root.is_dir():
        raise ShardError(f"no such folder: {root}")
    entries = []
    for folder in sorted(path.parent for path in root.glob("*/images")):
        images = images_by_stem(folder / "images")
        if len(images) != 1:
            raise ShardError(f"{folder / 'images'} holds {len(images)} images, expected one")
        masks = files_by_stem(folder / "masks", (".png",))
        if not masks:
            raise ShardError(f"{folder / 'masks'} holds no masks: expected .png files")
        (image,) = images.values()
        entries.append((folder.name + image.suffix, image, [masks[stem] for stem in sorted(masks)]))
    if not entries:
        raise ShardError(f"no folders STEM/images and STEM/masks in {root}: give the folder of the masks by --masks")
    return entries


def _in_two_folders(images: Path, masks: Path) -> list[tuple[str, Path, list[Path]]]:
    image_paths, mask_paths = images_by_stem(images), files_by_stem(masks, (".png",))
    masks_by_image: dict[str, list[Path]] = {stem: [] for stem in sorted(image_paths)}
    for stem in sorted(mask_paths):
        candidates = [candidate for candidate in _candidate_images(stem) if candidate in image_paths]
        if len(candidates) != 1:
            ambiguous = f"may belong to {' and '.join(candidates)}: use one folder of masks per image"
            problem = ambiguous if candidates else "has no image"
            raise ShardError(f"{mask_paths[stem]} {problem}; expected STEM/*.png, STEM_*.png or STEM.png for {images}/STEM.*")
        masks_by_image[candidates[0]].append(mask_paths[stem])
    for stem, paths in masks_by_image.items():
        if not paths and not (masks / stem).is_dir():
            expected = f"expected {masks / stem}/*.png, or an empty folder if it has no object"
            raise ShardError(f"{image_paths[stem]} has no masks: {expected}")
    return [(image_paths[stem].relative_to(images).as_posix(), image_paths[stem], m) for stem, m in masks_by_image.items()]


def _candidate_images(stem: str) -> list[str]:
    """Return every image stem that a mask's stem may refer to: itself, its folder, and its prefixes before an underscore."""
    folder, _, name = stem.rpartition("/")
    prefix = folder + "/" if folder else ""
    prefixes = [prefix + name[:index] for index, character in enumerate(name) if character == "_" and index]
    return [stem, *([folder] if folder else []), *prefixes]
