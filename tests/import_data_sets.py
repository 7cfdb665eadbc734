"""A small valid data set of every kind that `sam-data import` knows: two images, a and b, with two objects each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from sam_train.rle import encode_rle

HEIGHT, WIDTH = 20, 30
STEMS = ("a", "b")
BOXES = ((2, 3, 9, 12), (11, 15, 18, 28))
"""Top, left, bottom, right of the two objects."""


def object_mask(number: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left, bottom, right = BOXES[number]
    mask[top:bottom, left:right] = True
    return mask


def label_map() -> np.ndarray:
    return sum((object_mask(n) * np.uint8(n + 1) for n in (0, 1)), np.zeros((HEIGHT, WIDTH), np.uint8))


def polygon(number: int) -> list[list[int]]:
    top, left, bottom, right = BOXES[number]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def save(path: Path, values: np.ndarray | None = None) -> Path:
    """Write an image of `values`, by default a gray one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if values is None else values).save(path)
    return path


def save_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def _images(root: Path) -> Path:
    for stem in STEMS:
        save(root / "images" / f"{stem}.jpg")
    return root / "images"


def make_sa1b(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        save(root / "source" / f"{stem}.jpg")
        masks = [
            {
                "id": n + 1,
                "segmentation": encode_rle(object_mask(n)),
                "bbox": [0, 0, 1, 1],
                "area": int(object_mask(n).sum()),
                "predicted_iou": 0.9,
                "stability_score": 0.9,
                "crop_box": [0, 0, WIDTH, HEIGHT],
                "point_coords": [[1, 1]],
            }
            for n in (0, 1)
        ]
        image = {"image_id": ord(stem), "width": WIDTH, "height": HEIGHT, "file_name": f"{stem}.jpg"}
        save_json(root / "source" / f"{stem}.json", {"image": image, "annotations": masks})
    return {"source": root / "source"}


def instances(stems: tuple[str, ...] = STEMS) -> dict[str, list[dict[str, object]]]:
    images = [
        {"id": i, "file_name": f"{s}.jpg", "coco_url": f"http://x/val/{s}.jpg", "height": HEIGHT, "width": WIDTH}
        for i, s in enumerate(stems, start=1)
    ]
    annotations = [
        {
            "id": 10 * image["id"] + n,
            "image_id": image["id"],
            "category_id": 7 + n,
            "iscrowd": 0,
            "segmentation": [np.ravel(polygon(n)).tolist()],
        }
        for image in images
        for n in (0, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]}


def make_instances(root: Path) -> dict[str, Path]:
    return {"images": _images(root), "annotations": save_json(root / "instances.json", instances())}


def make_label_maps(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        save(root / "labels" / f"{stem}.png", label_map())
    return {"images": _images(root), "labels": root / "labels"}


def make_binary_masks(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        for n in (0, 1):
            save(root / "masks" / f"{stem}_{n}.png", object_mask(n).astype(np.uint8) * 255)
    return {"images": _images(root), "masks": root / "masks"}


def make_yolo(root: Path) -> dict[str, Path]:
    (root / "labels").mkdir(parents=True)
    for stem in STEMS:
        lines = [f"{n} " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in polygon(n)) for n in (0, 1)]
        (root / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    return {"images": _images(root), "labels": root / "labels"}


def make_panoptic(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        save(root / "labels" / f"{stem}.png", np.dstack([label_map(), label_map() * 3, label_map() * 0]))
    return {"images": _images(root), "labels": root / "labels"}


def make_bsds500(root: Path) -> dict[str, Path]:
    (root / "labels").mkdir(parents=True)
    for stem in STEMS:
        truth = np.empty((1, 1), object)
        truth[0, 0] = {"Segmentation": label_map().astype(np.uint16), "Boundaries": label_map()}
        savemat(root / "labels" / f"{stem}.mat", {"groundTruth": truth})
    return {"images": _images(root), "labels": root / "labels"}


def make_labelme(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        shapes = [{"label": "cat", "points": polygon(n), "group_id": None, "shape_type": "polygon", "flags": {}} for n in (0, 1)]
        document = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None}
        save_json(root / "images" / f"{stem}.json", {**document, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    return {"images": _images(root)}


def cvat_xml(shapes: str) -> str:
    sides = f'width="{WIDTH}" height="{HEIGHT}"'
    images = "".join(f'<image id="{n}" name="{stem}.jpg" {sides}>{shapes}</image>' for n, stem in enumerate(STEMS))
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def cvat_polygon(number: int, **more: str) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon(number))
    attributes = "".join(f' {name}="{value}"' for name, value in {"label": "cat", **more}.items())
    return f'<polygon{attributes} source="manual" occluded="0" points="{points}" z_order="0"></polygon>'


def make_cvat(root: Path) -> dict[str, Path]:
    images = _images(root)
    (root / "annotations.xml").write_text(cvat_xml(cvat_polygon(0) + cvat_polygon(1)))
    return {"images": images, "annotations": root / "annotations.xml"}


def make_amg(root: Path) -> dict[str, Path]:
    """Write the output of the generator for image a as PNGs with metadata.csv, and for b as JSON."""
    columns = "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score"
    rows = [f"{n},63,3,2,9,7,5.0,5.0,0.{9 - n},0.95" for n in (0, 1)]
    for n in (0, 1):
        save(root / "masks" / "a" / f"{n}.png", object_mask(n).astype(np.uint8) * 255)
    (root / "masks" / "a" / "metadata.csv").write_text("\n".join([columns, *rows]) + "\n")
    masks = [
        {
            "segmentation": encode_rle(object_mask(n)),
            "area": int(object_mask(n).sum()),
            "bbox": [0, 0, 1, 1],
            "predicted_iou": 0.9 - n / 10,
            "point_coords": [[5.0, 5.0]],
            "stability_score": 0.95,
            "crop_box": [0, 0, WIDTH, HEIGHT],
        }
        for n in (0, 1)
    ]
    save_json(root / "masks" / "b.json", masks)
    return {"images": _images(root), "labels": root / "masks"}


def make_voc(root: Path) -> dict[str, Path]:
    for stem in STEMS:
        save(root / "JPEGImages" / f"{stem}.jpg")
        for folder, values in (("SegmentationObject", label_map()), ("SegmentationClass", label_map() + 6 * (label_map() > 0))):
            image = Image.fromarray(values.astype(np.uint8))
            image.putpalette([n // 3 for n in range(768)])
            (root / folder).mkdir(exist_ok=True)
            image.save(root / folder / f"{stem}.png")
    return {"source": root}


def make_label_studio(root: Path) -> dict[str, Path]:
    sides = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    tasks = []
    for number, stem in enumerate(STEMS):
        regions = [
            {
                "id": f"r{n}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                **sides,
                "value": {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in polygon(n)], "polygonlabels": ["cat"]},
            }
            for n in (0, 1)
        ]
        annotations = [{"id": number, "was_cancelled": False, "result": regions}]
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{stem}.jpg"}, "annotations": annotations})
    return {"images": _images(root), "annotations": save_json(root / "tasks.json", tasks)}


DATA_SETS: Mapping[str, Callable[[Path], dict[str, Path]]] = {
    "sa1b": make_sa1b,
    "coco": make_instances,
    "lvis": make_instances,
    "label_maps": make_label_maps,
    "binary_masks": make_binary_masks,
    "yolo": make_yolo,
    "panoptic": make_panoptic,
    "bsds500": make_bsds500,
    "labelme": make_labelme,
    "cvat": make_cvat,
    "amg": make_amg,
    "voc": make_voc,
    "label_studio": make_label_studio,
    "colour_masks": make_panoptic,
}
"""Kind -> function that writes the data set into a folder and returns the required options of the importer."""


def command(kind: str, options: Mapping[str, Path], *more: str) -> list[str]:
    """Return the arguments of `sam-data` that import a data set."""
    named = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]
    return ["import", kind, *named, *more]
