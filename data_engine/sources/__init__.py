"""Image sources: a folder, a glob, a list of paths and URLs, or SA-1B tars, listed in one fixed order.

`open_source` only lists file names or tar headers and decodes nothing. The references can therefore be divided into slices
immediately, and each slice can be loaded elsewhere: `Source.load` needs only the reference.

references.py   references to images, stored as columns
listing.py      the listing of a source
remote.py       images and shards at URLs
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.sources.listing import LISTING_REASONS, list_source
from data_engine.sources.references import ImageReference, ImageReferences
from data_engine.sources.remote import REMOTE_REASONS, fetch_url, remote_shard_opener
from data_engine.structures import SourceImage
from sam_train.errors import SkipSampleError
from sam_train.shards import decode_jpeg
from sam_train.shards.image_io import IMAGE_SKIP_REASONS, MAX_PIXELS, decode_image, load_image, open_image_header
from sam_train.shards.index import IndexedSample, read_sample
from sam_train.shards.jpeg import strip_metadata
from sam_train.shards.tar_members import open_local_shard

LOAD_REASONS = (*IMAGE_SKIP_REASONS, "wrong_size", *REMOTE_REASONS)
"""Every `reason` of a SkipSampleError that `Source.load` raises."""

__all__ = ["LISTING_REASONS", "LOAD_REASONS", "ImageReference", "ImageReferences", "Source", "open_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The images of a source in a fixed order. Picklable, and small enough to send to a worker."""

    references: Sequence[ImageReference]
    """References to the images; see `ImageReferences`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that were found but not listed: relative path -> one of LISTING_REASONS."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels are skipped."""

    def load(self, reference: ImageReference) -> SourceImage:
        """Read and decode one image: upright RGB, and the JPEG that decodes to exactly these pixels.

        Raises SkipSampleError, with a `reason` among LOAD_REASONS, for an image that cannot be used; ShardError for a record that
        does not match the schema or a tar that changed since it was listed; OSError if the disk or a permission fails.
        """
        if reference.sample is not None:
            return _load_sample(reference, reference.sample, self.max_pixels)
        if isinstance(reference.path, str):
            max_bytes = 16 * self.max_pixels + (1 << 20)  # the limit of `load_image`
            data = fetch_url(reference.path, max_bytes=max_bytes, key=reference.key)
            loaded = decode_image(data, key=reference.key, name=reference.origin, max_pixels=self.max_pixels)
        else:
            try:
                loaded = load_image(reference.path, key=reference.key, max_pixels=self.max_pixels)
            except FileNotFoundError as error:  # the file existed when the source was listed
                raise SkipSampleError("missing", f"{reference.origin} no longer exists", key=reference.key) from error
        return SourceImage(
            key=reference.key, image_id=reference.image_id, image=loaded.image, jpeg=loaded.jpeg, origin=reference.origin
        )


def open_source(source: str | Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """List the images of `source` and return them as a `Source`.

    - A folder is searched recursively, in the order of the relative paths. Hidden files and folders are ignored.
      A folder that directly contains .tar files is a folder of shards.
    - A glob (including `**`) lists as the folder before its first wildcard does, so an image has the same key with both.
    - A `.txt` list keeps its order; its lines are paths relative to the list's folder, or URLs. File extensions do not matter.
    - A name that ends in .tar is a shard, or a glob or brace range of shards, in name order.
    - Each of these may be a URL (`https://`, `s3://`, `gs://`, any protocol of fsspec). Remote shards need their manifests.

    In folders and globs a symbolic link to a file inside the folder is followed, one to a file outside is not; links to folders
    are not followed. `Source.skipped` contains the links that were not followed. In a list all links are followed, because it
    names its files one by one.

    Raises ConfigError if nothing is found or two images have the same key or image id; ShardError for a truncated tar.
    """
    references, skipped = list_source(os.path.expanduser(source))
    return Source(references=references, skipped=skipped, max_pixels=max_pixels)


def _load_sample(reference: ImageReference, indexed: IndexedSample, max_pixels: int) -> SourceImage:
    remote = isinstance(reference.path, str)
    sample = read_sample(indexed, remote_shard_opener(str(reference.path)) if remote else open_local_shard)
    open_image_header(sample.jpeg, key=reference.key, name=reference.origin, max_pixels=max_pixels)
    try:
        # The EXIF orientation is ignored, as by all readers of shards: the record's masks refer to the pixels as stored.
        image = decode_jpeg(sample.jpeg, shard=str(indexed.shard), key=reference.key)
        jpeg = strip_metadata(sample.jpeg)
    except (SkipSampleError, ValueError) as error:
        raise SkipSampleError("unreadable", f"{reference.origin} cannot be decoded: {error}") from error
    record = sample.record
    if image.shape[:2] != (record.height, record.width):
        message = f"the JPEG is {image.shape[1]} x {image.shape[0]}, but its record states {record.width} x {record.height}"
        raise SkipSampleError("wrong_size", message, shard=str(indexed.shard), key=reference.key)
    return SourceImage(
        key=reference.key, image_id=record.image_id, image=image, jpeg=jpeg, origin=reference.origin, record=record
    )
