"""The data set as Croissant 1.0 JSON-LD (mlcommons.org/croissant/1.0): files with hashes, images, and the table of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam_train.shards.maintenance.dataset_card.facts import DatasetFacts, File

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in ("column", "field", "fileProperty", "fileObject", "fileSet", "format", "includes")},
    **{
        name: f"cr:{name}"
        for name in ("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references")
    },
    **{name: f"cr:{name}" for name in ("regex", "repeated", "replace", "separator", "source", "subField", "transform")},
    "citeAs": "cr:citeAs",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    **{name: f"cr:{name}" for name in ("equivalentProperty", "samplingRate")},
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "sc": "https://schema.org/",
}

MEANINGS = {
    "image_key": "name of the image's members in the tar, without extension",
    "image_id": "id of the image",
    "mask_id": "id of the mask",
    "width": "width of the image in pixels",
    "height": "height of the image in pixels",
    "area": "number of pixels of the mask",
    "box_x": "left edge of the mask's box in pixels",
    "box_y": "upper edge of the mask's box in pixels",
    "box_width": "width of the mask's box in pixels",
    "box_height": "height of the mask's box in pixels",
    "predicted_iou": "IoU of the mask as predicted by the model",
    "stability_score": "IoU between the masks at a higher and at a lower threshold of the logits",
    "stage": "stage of the data engine, or import",
    "checkpoint": "SHA-256 of the checkpoint that was used",
    "annotator": "annotator, a person or a program",
    "config": "hash of the config that was used",
    "num_prompts": "number of point prompts for the mask",
    "seconds": "annotation time of the mask in seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDescription:
    """Description of a data set by its creators; an empty text is unknown."""

    name: str
    description: str = ""
    license: str = ""
    url: str = ""
    creator: str = ""
    cite_as: str = ""
    version: str = "1.0.0"
    published: str = ""
    """Date of publication, such as 2026-11-22."""


def croissant(description: DatasetDescription, facts: DatasetFacts, address_of: Callable[[File], str]) -> dict[str, Any]:
    """Return the document. `address_of` returns the URL of a file, or its path relative to the document."""
    optional = {
        "license": description.license,
        "url": description.url,
        "citeAs": description.cite_as,
        "datePublished": description.published,
    }
    creator = {"creator": {"@type": "sc:Organization", "name": description.creator}} if description.creator else {}
    tars = [_file(file, address_of(file), "application/x-tar") for file in facts.shards]
    tables = [_file(file, address_of(file), "application/x-parquet") for file in facts.tables]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": description.name,
        "description": description.description
        or f"{facts.num_images} images with {facts.num_masks} masks, in the format of SA-1B.",
        "version": description.version,
        **{key: value for key, value in optional.items() if value},
        **creator,
        "distribution": [
            *tars,
            *tables,
            _files("images", "image/jpeg", "*.jpg", tars),
            _files("records", "application/json", "*.json", tars),
            _files("tables", "application/x-parquet", "*.masks.parquet"),
        ],
        "recordSet": [_images(), _masks(facts.columns)],
    }


def _file(file: File, address: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path.name,
        "name": file.path.name,
        "contentUrl": address,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": kind,
        "sha256": file.sha256,
    }


def _files(name: str, kind: str, pattern: str, archives: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Describe members of the archives, or files beside the document if there are none."""
    contained = {"containedIn": [{"@id": archive["@id"]} for archive in archives]} if archives else {}
    return {"@type": "cr:FileSet", "@id": name, "name": name, **contained, "encodingFormat": kind, "includes": pattern}


def _images() -> dict[str, Any]:
    """Describe the images: key and pixels. The masks of an image are in the record with the same key."""
    name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": "^(?:.*/)?([^/.]+)\\.jpg$"}}
    return {
        "@type": "cr:RecordSet",
        "@id": "image",
        "name": "image",
        "description": "The images. KEY.jpg and KEY.json are adjacent members of a tar; the JSON has the masks as COCO RLE.",
        "key": {"@id": "image/key"},
        "field": [
            _field("image/key", "KEY of the two members", "sc:Text", {"fileSet": {"@id": "images"}, **name}),
            _field(
                "image/content",
                "the image",
                "sc:ImageObject",
                {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}},
            ),
        ],
    }


def _masks(columns: Mapping[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "mask",
        "name": "mask",
        "description": "One row per mask with its measures and provenance. Its pixels are in the record of its image.",
        "field": [
            _field(f"mask/{name}", MEANINGS.get(name, name), kind, {"fileSet": {"@id": "tables"}, "extract": {"column": name}})
            for name, kind in columns.items()
        ],
    }


def _field(name: str, description: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "description": description, "dataType": kind, "source": source}
