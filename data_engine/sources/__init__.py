"""Where pictures come from: a folder, a glob, a list of paths and URLs, or SA-1B tars, in one fixed order.

`open_source` only lists: file names, or the headers of tars. Nothing is decoded, so the references can be cut into slices
at once and each slice loaded elsewhere; `Source.load` needs nothing but the reference.

references.py   the references, as columns
listing.py      what a source names
far.py          what lies at a URL
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_engine.sources.listing import LISTING_REASONS, list_source
from data_engine.sources.references import ImageReference, ImageReferences
from data_engine.sources.remote import REMOTE_REASONS, fetch, remote_shard_opener
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
    """All pictures of a source in a fixed order. Small enough to send to a worker, and picklable."""

    references: Sequence[ImageReference]
    skipped: dict[str, str] = field(default_factory=dict)
    """What was found but not listed: relative path -> one of LISTING_REASONS."""
    max_pixels: int = MAX_PIXELS

    def load(self, reference: ImageReference) -> SourceImage:
        """Read and decode one picture: upright RGB, and the JPEG that decodes to exactly that.

        Raises SkipSampleError for a picture that cannot be used, `reason` one of LOAD_REASONS; ShardError for a record that
        the schema does not know or a tar that changed since it was listed; OSError where the disk or a permission fails.
        """
        if reference.sample is not None:
            return _load_sample(reference, reference.sample, self.max_pixels)
        if isinstance(reference.path, str):
            most = 16 * self.max_pixels + (1 << 20)  # as `load_image` has it
            data = fetch(reference.path, max_bytes=most, key=reference.key)
            picture = decode_image(data, key=reference.key, name=reference.origin, max_pixels=self.max_pixels)
        else:
            try:
                picture = load_image(reference.path, key=reference.key, max_pixels=self.max_pixels)
            except FileNotFoundError as error:  # it was there when the source was listed
                raise SkipSampleError("missing", f"{reference.origin} is not there any more", key=reference.key) from error
        return SourceImage(
            key=reference.key, image_id=reference.image_id, image=picture.image, jpeg=picture.jpeg, origin=reference.origin
        )


def open_source(source: str | Path, *, max_pixels: int = MAX_PIXELS) -> Source:
    """List the pictures that `source` names.

    - A folder is searched to the bottom, in the order of the relative paths. Hidden files and folders are not looked at.
      A folder that directly holds .tar files is a folder of shards.
    - A glob (`**` included) lists as the folder before its first wildcard would, so both give a picture the same key.
    - A `.txt` list keeps its order; its lines are paths relative to the list's folder, or URLs. Extensions do not matter.
    - A name that ends in .tar is a shard, or a glob or brace range of shards, in name order.
    - Each of these may be a URL (`https://`, `s3://`, `gs://`, whatever fsspec reads). Shards there need their manifests.

    In folders and globs a link is followed to a file inside, never to one outside; links to folders are not followed.
    What was left out so stands in `Source.skipped`. A list names its files one by one, so there any link is followed.

    Raises ConfigError when nothing is found, or two pictures have one key or image id; ShardError for a torn tar.
    """
    references, skipped = list_source(os.path.expanduser(source))
    return Source(references=references, skipped=skipped, max_pixels=max_pixels)


def _load_sample(reference: ImageReference, indexed: IndexedSample, max_pixels: int) -> SourceImage:
    far = isinstance(reference.path, str)
    sample = read_sample(indexed, remote_shard_opener(str(reference.path)) if far else open_local_shard)
    open_image_header(sample.jpeg, key=reference.key, name=reference.origin, max_pixels=max_pixels)
    try:
        # Not turned upright by its EXIF: no reader of shards does, and the record's masks lie on the pixels as stored.
        image = decode_jpeg(sample.jpeg, shard=str(indexed.shard), key=reference.key)
        jpeg = strip_metadata(sample.jpeg)
    except (SkipSampleError, ValueError) as error:
        raise SkipSampleError("unreadable", f"{reference.origin} does not decode: {error}") from error
    record = sample.record
    if image.shape[:2] != (record.height, record.width):
        message = f"the JPEG is {image.shape[1]} x {image.shape[0]}, its record says {record.width} x {record.height}"
        raise SkipSampleError("wrong_size", message, shard=str(indexed.shard), key=reference.key)
    return SourceImage(
        key=reference.key, image_id=record.image_id, image=image, jpeg=jpeg, origin=reference.origin, record=record
    )
