"""Removal of JPEG metadata: pixels stay unchanged, private data goes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sam_train.errors import SkipSampleError
from sam_train.shards import decode_jpeg, encode_jpeg
from sam_train.shards.icc import strip_icc_texts
from sam_train.shards.jpeg import list_metadata, strip_metadata

PRIVATE = b"41 deg 24 min N"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photo() -> np.ndarray:
    """A JPEG of noise, whose scans contain every byte value, including FF 00 and marker codes."""
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)


def saved(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = PRIVATE.decode()  # ImageDescription
    tags.get_ifd(0x8825)[1] = "N"  # GPS
    return tags


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


KINDS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 95},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 1},
    "subsampled": {"subsampling": "4:2:0", "quality": 30},
    "colours not transformed": {"keep_rgb": True},
    "optimised": {"optimize": True},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("image", [photo(), photo()[..., 0]], ids=["rgb", "gray"])
def test_keeps_pixels_and_removes_metadata(image: np.ndarray, options: dict[str, Any]) -> None:
    data = saved(image, exif=exif(), comment=PRIVATE, xmp=PRIVATE, icc_profile=ICC, **options)
    plain = strip_metadata(data)
    assert data.count(PRIVATE) == 3
    assert PRIVATE not in plain
    assert b"Exif" not in plain
    np.testing.assert_array_equal(decode_jpeg(plain), decode_jpeg(data))
    with Image.open(io.BytesIO(plain)) as read:
        assert read.info["icc_profile"] == strip_icc_texts(ICC)
        assert not read.getexif()
    assert plain == saved(image, icc_profile=strip_icc_texts(ICC), **options)


def test_keeps_adobes_colour_transform() -> None:
    """A decoder without it would read the three channels as YCbCr."""
    flat = np.full((16, 16, 3), [200, 30, 60], np.uint8)
    data = saved(flat, keep_rgb=True, quality=100)
    adobe = segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0]))
    data = with_segments(data, adobe) if b"Adobe" not in data else data
    assert b"Adobe" in strip_metadata(data)
    assert np.abs(decode_jpeg(strip_metadata(data)).astype(int) - flat).max() <= 2


@pytest.mark.parametrize(
    "private",
    [
        segment(0xE0, b"JFXX\0\x10" + PRIVATE),  # a thumbnail
        segment(0xE1, b"Exif\0\0" + PRIVATE),
        segment(0xE2, b"MPF\0" + PRIVATE),  # offsets of more images in the file
        segment(0xE2, b"FPXR\0" + PRIVATE),
        segment(0xED, b"Photoshop 3.0\0" + PRIVATE),
        segment(0xEE, PRIVATE),
        *(segment(marker, PRIVATE) for marker in (*range(0xE3, 0xED), 0xEF, 0xFE)),
        b"\xff\xff\xff" + segment(0xE1, PRIVATE),  # a marker may have fill bytes
    ],
)
def test_handles_every_kind_of_segment(private: bytes) -> None:
    plain = saved(photo())
    assert strip_metadata(with_segments(plain, private)) == plain
    assert strip_metadata(with_segments(plain, private, private)) == plain


def profile_with_texts() -> bytes:
    """Return an sRGB profile with private data: name and serial number of a screen, a date and an ID."""
    name = b"desc" + bytes(4) + (len(PRIVATE) + 1).to_bytes(4, "big") + PRIVATE + bytes(90)
    tags = _tags(ICC) | {b"desc": name, b"mmod": b"mmod" + bytes(4) + PRIVATE}
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + (start + len(data)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    header = bytearray(ICC[:128])
    header[:4] = (start + len(data)).to_bytes(4, "big")
    header[48:56], header[84:100] = b"APPLSERI", b"0123456789abcdef"
    return bytes(header) + len(tags).to_bytes(4, "big") + table + data


def _tags(profile: bytes) -> dict[bytes, bytes]:
    found = {}
    for row in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        offset, size = (int.from_bytes(profile[at : at + 4], "big") for at in (row + 4, row + 8))
        found[profile[row : row + 4]] = profile[offset : offset + size]
    return found


def test_icc_profile_keeps_its_colours_and_loses_its_texts() -> None:
    full = profile_with_texts()
    bare = strip_icc_texts(full)
    assert bare is not None
    assert full.count(PRIVATE) == 2
    for private in (PRIVATE, b"SERI", b"0123456789abcdef", full[24:36], b"sRGB", b"copyright"):
        assert private not in bare
    assert strip_icc_texts(bare) == bare
    image = Image.fromarray(photo())
    lab = ImageCms.createProfile("LAB")
    seen = [
        np.asarray(ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(p)), lab, outputMode="LAB"))
        for p in (full, bare)
    ]
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize("damage", ["cut", "no signature", "count", "offset", "missing part", "parts twice"])
def test_removes_invalid_icc_profiles(damage: str) -> None:
    full = bytearray(profile_with_texts())
    if damage == "no signature":
        full[36:40] = b"none"
    elif damage == "count":
        full[128:132] = b"\xff\xff\xff\xff"
    elif damage == "offset":
        full[136:140] = b"\xff\xff\xff\xff"
    head, rest = b"ICC_PROFILE\0\x01\x02", b"ICC_PROFILE\0\x02\x02"
    parts = [segment(0xE2, head + full[:200]), segment(0xE2, rest + (full[200:300] if damage == "cut" else full[200:]))]
    parts = parts[:1] if damage == "missing part" else parts * 2 if damage == "parts twice" else parts
    plain = saved(photo())
    assert strip_metadata(with_segments(plain, *parts)) == plain


def test_reads_an_icc_profile_in_chunks_of_any_order() -> None:
    full = profile_with_texts()
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 2]) + part) for n, part in ((2, full[300:]), (1, full[:300]))]
    bare = strip_metadata(with_segments(saved(photo()), *parts))
    with Image.open(io.BytesIO(bare)) as read:
        assert read.info["icc_profile"] == strip_icc_texts(full)


def test_removes_the_thumbnail_of_jfif() -> None:
    plain = saved(photo())
    at = plain.index(b"JFIF") - 4
    header = b"JFIF\0\x01\x01\0\0\x01\0\x01"
    with_thumbnail = plain[:at] + segment(0xE0, header + b"\x04\x04" + PRIVATE.ljust(48)) + plain[at + 18 :]
    assert list_metadata(with_thumbnail) == ["a thumbnail"]
    assert strip_metadata(with_thumbnail) == plain[:at] + segment(0xE0, header + b"\0\0") + plain[at + 18 :]


def test_segment_may_contain_the_bytes_of_a_marker() -> None:
    plain = saved(photo())
    thumbnail = saved(photo()[:16, :16])
    assert strip_metadata(with_segments(plain, segment(0xE1, b"Exif\0\0" + thumbnail))) == plain


def test_removes_a_second_image_after_the_end() -> None:
    """Phones append a preview, a depth map or a film with EXIF of its own."""
    plain = saved(photo())
    assert strip_metadata(plain + saved(photo(), exif=exif()) + b"MotionPhoto_Data" + PRIVATE) == plain


def test_our_own_jpegs_stay_unchanged() -> None:
    for quality in (50, 95, 100):
        data = encode_jpeg(photo(), quality)
        assert strip_metadata(data) == data


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 300, -3, -2, -1])
def test_rejects_a_truncated_file(cut: int) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        strip_metadata(saved(photo(), exif=exif())[:cut])


@given(st.binary(max_size=200), st.integers(0, 600))
def test_random_bytes_become_a_jpeg_or_an_error(noise: bytes, position: int) -> None:
    data = encode_jpeg(photo()[:8, :8])
    data = data[:position] + noise + data[position:]
    try:
        plain = strip_metadata(data)
    except ValueError:
        return
    assert plain.startswith(b"\xff\xd8")
    assert plain.endswith(b"\xff\xd9")
    assert len(plain) <= len(data)
    assert strip_metadata(plain) == plain


@pytest.mark.parametrize("side", [5000, 65_000])
def test_rejects_a_few_bytes_that_declare_a_large_image(side: int) -> None:
    jpeg = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = side.to_bytes(2, "big") * 2
    with pytest.raises(SkipSampleError, match=r"cannot hold|at most") as caught:
        decode_jpeg(bytes(jpeg))
    assert caught.value.reason == ("too_large" if side > 14_000 else "undecodable_jpeg")


def test_accepts_a_blank_image() -> None:
    for side in (8, 500, 4000):
        blank = simplejpeg.encode_jpeg(np.zeros((side, side, 1), np.uint8), quality=1, colorspace="GRAY")
        assert decode_jpeg(blank).shape[0] == side


def test_lists_kinds_of_metadata() -> None:
    bare = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    segment = lambda marker, content: bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content  # noqa: E731
    added = {
        "EXIF": segment(0xE1, b"Exif\0\0x"),
        "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0x"),
        "IPTC": segment(0xED, b"Photoshop 3.0\0x"),
        "a comment": segment(0xFE, b"made by"),
        "APP5": segment(0xE5, b"x"),
        "texts of the ICC profile": segment(0xE2, b"ICC_PROFILE\0\x01\x01" + profile_with_texts()),
    }
    assert list_metadata(bare) == []
    assert list_metadata(bare[:2] + b"".join(added.values()) + bare[2:] + b"x") == [*added, "bytes after its end"]
    assert list_metadata(b"no JPEG") == []
