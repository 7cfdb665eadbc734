"""One file a mask: DSB 2018 as it was given out, and folders of cut-outs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam_train.errors import ShardError
from sam_train.masks import encode_rle
from sam_train.records import ImageRecord, MaskRecord
from sam_train.shards.class_names import parse_class_name
from sam_train.shards.importers.file_pairing import files_by_stem, images_by_stem, load_image_or_raise
from sam_train.shards.importers.label_maps import check_matches_image_size, read_label_map
from sam_train.shards.importers.mask_records import mask_record_from_rle
from sam_train.shards.keys import image_id_from_path, keys_from_paths


def import_binary_masks(
    images: Path, masks: Path | None = None, *, name: str = "", min_area: int = 1, counts: Counter[str] | None = None
) -> Iterator[tuple[ImageRecord, bytes]]:
    """Pictures, each with a PNG for every one of its masks, to records and JPEG bytes, in name order.

    With `masks`, those of `images/STEM.*` are `masks/STEM/*.png`, `masks/STEM_*.png` or the one `masks/STEM.png`. Without, all
    is in one folder in the way of DSB 2018: `images/STEM/images/*` and `images/STEM/masks/*.png`.

    A mask is a PNG of one channel, 0 and one other value, of the size of its picture seen upright. Ids count from 1 in the
    order of the masks' names. Masks of no pixel are left out and counted as "mask_without_pixels", others below `min_area`
    pixels as "below_min_area". `name` is what every mask shows, such as "nucleus".

    Raises ShardError, naming the file, for a picture without masks or the reverse, a mask that could belong to two pictures,
    holds more than two values or is of another size, and a file that cannot be read.
    """
    counts = Counter() if counts is None else counts
    shown = parse_class_name(name, place="--name")
    pairs = _in_one_folder(images) if masks is None else _in_two_folders(images, masks)
    keys = keys_from_paths([name for name, _, _ in pairs])
    for key, (file, image, masks_of_it) in zip(keys, pairs, strict=True):
        picture = load_image_or_raise(image, key=key)
        height, width = picture.image.shape[:2]
        records = []
        for number, path in enumerate(masks_of_it, start=1):
            mask = _read_mask(path)
            check_matches_image_size(path, mask, height=height, width=width, key=key)
            records += _records(mask, number, shown, min_area, counts)
        yield ImageRecord(key=key, image_id=image_id_from_path(file), width=width, height=height, masks=records), picture.jpeg


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
        found = ", ".join(map(str, np.unique(values)[:4]))
        raise ShardError(f"{path} holds {found} and perhaps more: expected 0 and one other value; see also the kind label_maps")
    return mask


def _in_one_folder(root: Path) -> list[tuple[str, Path, list[Path]]]:
    """(name, picture, masks) of DSB's folders; the name is that of the picture's folder, which DSB repeats in the file's."""
    if not root.is_dir():
        raise ShardError(f"no such folder: {root}")
    found = []
    for folder in sorted(path.parent for path in root.glob("*/images")):
        pictures = images_by_stem(folder / "images")
        if len(pictures) != 1:
            raise ShardError(f"{folder / 'images'} holds {len(pictures)} pictures, expected one")
        files = files_by_stem(folder / "masks", (".png",))
        if not files:
            raise ShardError(f"{folder / 'masks'} holds no masks: expected .png files")
        (picture,) = pictures.values()
        found.append((folder.name + picture.suffix, picture, [files[stem] for stem in sorted(files)]))
    if not found:
        raise ShardError(f"no folders STEM/images and STEM/masks in {root}: where masks lie apart, name their folder by --masks")
    return found


def _in_two_folders(images: Path, masks: Path) -> list[tuple[str, Path, list[Path]]]:
    pictures, files = images_by_stem(images), files_by_stem(masks, (".png",))
    of_picture: dict[str, list[Path]] = {stem: [] for stem in sorted(pictures)}
    for stem in sorted(files):
        owners = [owner for owner in _possible_owners(stem) if owner in pictures]
        if len(owners) != 1:
            either = f"could belong to {' and '.join(owners)}: give each picture's masks a folder" if owners else "has no picture"
            raise ShardError(f"{files[stem]} {either}; expected STEM/*.png, STEM_*.png or STEM.png for {images}/STEM.*")
        of_picture[owners[0]].append(files[stem])
    for stem, found in of_picture.items():
        if not found and not (masks / stem).is_dir():
            raise ShardError(f"{pictures[stem]} has no masks: expected {masks / stem}/*.png, an empty folder if there are none")
    return [(pictures[stem].relative_to(images).as_posix(), pictures[stem], found) for stem, found in of_picture.items()]


def _possible_owners(stem: str) -> list[str]:
    """Every picture's stem that a mask's may begin with: itself, its folder, and what stands before an underscore."""
    folder, _, name = stem.rpartition("/")
    prefix = folder + "/" if folder else ""
    cut = [prefix + name[:index] for index, letter in enumerate(name) if letter == "_" and index]
    return [stem, *([folder] if folder else []), *cut]
