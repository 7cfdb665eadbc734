"""Reading of XML files of annotation tools, without document types and entities, which can expand without limit."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from sam_train.errors import ShardError

_MAX_BYTES = 1 << 30


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root element. Raises ShardError, naming the file, if it is absent, not XML, or declares a document type."""
    if not path.is_file():
        raise ShardError(f"no such file: {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise ShardError(f"{path} has more than {_MAX_BYTES} bytes, the limit of an XML file")
    data = path.read_bytes()
    # Zero bytes: UTF-16 and UTF-32, in which the two words would be spelled otherwise.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise ShardError(f"{path} has a document type, entities or zero bytes, which annotation tools do not write")
    try:
        return ElementTree.fromstring(data)  # noqa: S314 (entities are excluded above)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        reason = str(error).replace(": ", ", ")
        raise ShardError(f"{path} is not XML: {reason}") from error
