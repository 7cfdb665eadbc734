"""Findings of `sam-data validate`: their reasons and their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

REASONS = {
    "torn_tar": "corrupt tar members, or a truncated tar",
    "bad_key": "a name that is not a valid key",
    "duplicate_member": "two members have the same name",
    "missing_jpg": "a JSON without its JPEG",
    "missing_json": "a JPEG without its JSON",
    "dotted_name": "an image or JSON with a dot in its name: readers cut the key at the first dot, so it is part of no sample",
    "not_adjacent": "JPEG and JSON are not adjacent, so they cannot be paired in one pass",
    "too_large": "a member larger than any sample",
    "undecodable_jpeg": "the JPEG does not decode completely",
    "exif": "EXIF, XMP or IPTC in the JPEG, which may contain location, date, owner or a thumbnail",
    "bad_record": "JSON that violates the schema",
    "wrong_size": "the image size in the record is not that of the JPEG",
    "bad_rle": "an RLE that is malformed or of another size",
    "wrong_area": "area is not the area of the mask",
    "wrong_box": "bbox is not the bounding box of the mask",
    "duplicate_mask_id": "two masks of an image have the same id",
    "duplicate_key": "an earlier sample has the same key",
    "duplicate_image_id": "an earlier sample has the same image id",
    "bad_manifest": "the manifest cannot be read",
    "manifest_name": "the file name in the manifest differs",
    "manifest_bytes": "the number of bytes in the manifest differs",
    "manifest_sha256": "the SHA-256 in the manifest differs",
    "manifest_keys": "the keys in the manifest differ",
    "manifest_places": "the byte ranges of the members in the manifest differ",
    "manifest_num_masks": "the number of masks in the manifest differs",
}
"""Reason of a finding -> its meaning."""

NOTES = {
    "no_manifest": "there is no manifest beside the shard, as in Meta's release, so its content cannot be verified",
    "other_member": "a member that is neither image nor JSON and part of no sample",
    "other_metadata": "comments, other application segments, or bytes after the end of the image in the JPEG",
}
"""Reason of a note, which is not an error -> its meaning."""

_MAX_TEXT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An error, or a note if its reason is in NOTES. All texts are safe to print."""

    shard: str
    key: str
    """Key of the sample, empty if the finding is on the whole shard."""
    field: str
    """Field of the record or the manifest, or `tar`, `jpg` or `json`."""
    reason: str
    message: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.shard, self.key, self.field) if part)
        return f"{where}: {self.reason}: {self.message}"


def finding(shard: str, key: str, field: str, reason: str, message: str) -> Finding:
    """Make a Finding. Its texts may come from a hostile file and are made printable and limited in length."""
    assert reason in REASONS or reason in NOTES, reason
    key, field, message = (printable(text) for text in (key, field, message))
    return Finding(shard=printable(shard, len(shard)), key=key, field=field, reason=reason, message=message)


def printable(text: str, max_length: int = _MAX_TEXT) -> str:
    """Escape characters that are not printable (escape sequences, half surrogates) as \\x1b, and cut at `max_length`."""
    text = text if len(text) <= max_length else f"{text[: max_length - 3]}..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def by_reason(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings by reason, the most frequent first."""
    return dict(sorted(Counter(item.reason for item in findings).items(), key=lambda pair: (-pair[1], pair[0])))


def as_documents(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON objects."""
    return [asdict(item) for item in findings]
