"""The set as Croissant 1.0 JSON-LD (mlcommons.org/croissant/1.0): its files with their hashes, its images, its table of masks."""

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
    "image_id": "number of the image",
    "mask_id": "number of the mask",
    "width": "of the image, pixels",
    "height": "of the image, pixels",
    "area": "pixels of the mask",
    "box_x": "left edge of the mask, pixels",
    "box_y": "upper edge of the mask, pixels",
    "box_width": "pixels",
    "box_height": "pixels",
    "predicted_iou": "the model's own estimate of the mask's IoU",
    "stability_score": "IoU of the mask cut at a higher and at a lower threshold",
    "stage": "of the engine, or import",
    "checkpoint": "SHA-256 of the model that helped",
    "annotator": "who or what made the mask",
    "config": "hash of the config that made it",
    "num_prompts": "points given for the mask",
    "seconds": "spent on the mask",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDescription:
    """What only people know of a set; empty is unknown."""

    name: str
    description: str = ""
    license: str = ""
    url: str = ""
    creator: str = ""
    cite_as: str = ""
    version: str = "1.0.0"
    published: str = ""
    """Date, as 2026-11-22."""


def croissant(title: DatasetDescription, facts: DatasetFacts, address_of: Callable[[File], str]) -> dict[str, Any]:
    """The document. `address_of` gives a file's URL, or its path from the document."""
    known = {"license": title.license, "url": title.url, "citeAs": title.cite_as, "datePublished": title.published}
    creator = {"creator": {"@type": "sc:Organization", "name": title.creator}} if title.creator else {}
    tars = [_file(file, address_of(file), "application/x-tar") for file in facts.shards]
    tables = [_file(file, address_of(file), "application/x-parquet") for file in facts.tables]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title.name,
        "description": title.description or f"{facts.num_images} images with {facts.num_masks} masks, as SA-1B has them.",
        "version": title.version,
        **{key: value for key, value in known.items() if value},
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
    """Members of the archives; without any, files beside the document."""
    contained = {"containedIn": [{"@id": archive["@id"]} for archive in archives]} if archives else {}
    return {"@type": "cr:FileSet", "@id": name, "name": name, **contained, "encodingFormat": kind, "includes": pattern}


def _images() -> dict[str, Any]:
    """Each image by its name, with its pixels; its masks are in the record of that name."""
    name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": "^(?:.*/)?([^/.]+)\\.jpg$"}}
    return {
        "@type": "cr:RecordSet",
        "@id": "image",
        "name": "image",
        "description": "The pictures. KEY.jpg and KEY.json lie side by side in a tar; the JSON has the masks as COCO RLE.",
        "key": {"@id": "image/key"},
        "field": [
            _field("image/key", "KEY of the two members", "sc:Text", {"fileSet": {"@id": "images"}, **name}),
            _field(
                "image/content",
                "the picture",
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
        "description": "A row a mask: numbers of it and where it comes from. Its pixels are in the record of its image.",
        "field": [
            _field(f"mask/{name}", MEANINGS.get(name, name), kind, {"fileSet": {"@id": "tables"}, "extract": {"column": name}})
            for name, kind in columns.items()
        ],
    }


def _field(name: str, description: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "description": description, "dataType": kind, "source": source}
