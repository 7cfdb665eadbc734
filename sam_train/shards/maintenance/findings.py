"""What can be wrong with shards, and how it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

REASONS = {
    "torn_tar": "bytes that are no tar member, or a tar that was cut",
    "bad_key": "a name that can be no key",
    "duplicate_member": "two members have one name",
    "missing_jpg": "a JSON without its JPEG",
    "missing_json": "a JPEG without its JSON",
    "not_adjacent": "JPEG and JSON do not follow each other, so one pass cannot pair them",
    "too_large": "a member larger than any sample",
    "undecodable_jpeg": "the JPEG does not decode, or not whole",
    "exif": "EXIF, XMP or IPTC in the JPEG: place, date, owner, thumbnail",
    "bad_record": "JSON that the schema refuses",
    "wrong_size": "the record's size is not the JPEG's",
    "bad_rle": "an RLE that is malformed or of another size",
    "wrong_area": "area is not the mask's",
    "wrong_box": "bbox is not the mask's",
    "duplicate_mask_id": "two masks of an image have one id",
    "duplicate_key": "another shard has this key too",
    "duplicate_image_id": "another image has this image id too",
    "bad_manifest": "the manifest cannot be read",
    "manifest_name": "the manifest is of another file name",
    "manifest_bytes": "the manifest has another number of bytes",
    "manifest_sha256": "the manifest has another SHA-256",
    "manifest_keys": "the manifest has other keys",
    "manifest_places": "the manifest has other places of the members",
    "manifest_num_masks": "the manifest has another number of masks",
}
"""Reason -> what it means. Every finding has one of them."""

NOTES = {
    "no_manifest": "no manifest beside the shard, as with Meta's: nothing to hold it to",
    "other_metadata": "comments, other application segments or bytes after the picture's end in the JPEG",
}
"""Reasons of what is told and makes no shard wrong."""

_MAX_TEXT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or with a reason of NOTES worth knowing. Texts are safe to print."""

    shard: str
    key: str
    """Empty where the whole shard is meant."""
    field: str
    """Of the record or the manifest, or `tar`, `jpg`, `json`."""
    reason: str
    message: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.shard, self.key, self.field) if part)
        return f"{place}: {self.reason}: {self.message}"


def finding(shard: str, key: str, field: str, reason: str, message: str) -> Finding:
    """A Finding whose texts, which may come from a hostile file, are made printable and of bounded length."""
    assert reason in REASONS or reason in NOTES, reason
    key, field, message = (printable(text) for text in (key, field, message))
    return Finding(shard=printable(shard, len(shard)), key=key, field=field, reason=reason, message=message)


def printable(text: str, most: int = _MAX_TEXT) -> str:
    """The text with what is no visible character (escape sequences, half surrogates) as \\x1b, and cut at `most` characters."""
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def by_reason(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each reason, the most frequent first."""
    return dict(sorted(Counter(item.reason for item in findings).items(), key=lambda pair: (-pair[1], pair[0])))


def as_documents(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(item) for item in findings]
