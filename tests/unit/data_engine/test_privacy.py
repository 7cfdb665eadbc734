"""Privacy: the annotated pixels are those of the stored JPEG, redacted; images without detections keep their bytes; the
audit lies beside the shards; images on the take-down list are skipped."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_sample
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from data_engine.privacy import (
    REDACTION_METHODS,
    CenterFace,
    Detections,
    Privacy,
    RedactionAudit,
    audit_path,
    read_audit,
    write_privacy_review,
)
from data_engine.sources import Source, open_source
from data_engine.structures import RedactedBox, SourceImage
from sam_train.errors import ConfigError, ShardError, SkipSampleError
from sam_train.shards import decode_jpeg, encode_jpeg, write_shard
from sam_train.shards.jpeg import list_metadata

PRIVATE = "41 deg 24 min N"


class Fixed:
    """Detector that returns the same boxes for every image."""

    def __init__(self, *boxes: Sequence[float], score: float = 0.5) -> None:
        self.boxes, self.score = np.array(boxes, dtype=float).reshape(-1, 4), score

    def detect(self, image: np.ndarray) -> Detections:
        return Detections(boxes_xyxy=self.boxes, scores=np.full(len(self.boxes), self.score))

    def identity(self) -> str:
        return f"{self.boxes.tolist()} {self.score}"


def source_image(image: np.ndarray, key: str = "a", image_id: int = 1) -> SourceImage:
    jpeg = encode_jpeg(image)
    return SourceImage(key=key, image_id=image_id, image=decode_jpeg(jpeg), jpeg=jpeg, origin=f"{key}.jpg")


def noise(height: int = 96, width: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def astronaut() -> SourceImage:
    return source_image(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def faces() -> CenterFace:
    try:
        return CenterFace()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("method", REDACTION_METHODS)
def test_face_is_not_detected_after_redaction(astronaut: SourceImage, faces: CenterFace, method: Any) -> None:
    before = astronaut.image.copy()
    privacy = Privacy({"faces": faces}, method=method)
    seen = privacy.redact_image(astronaut)
    assert [place.kind for place in seen.redacted_boxes] == ["faces"]
    left, top, right, bottom = seen.redacted_boxes[0].covered_xyxy
    assert (left < 182, top < 58, right > 270, bottom > 178) == (True,) * 4
    assert faces.detect(astronaut.image).scores.max() > 0.9
    assert faces.detect(seen.image).scores.max(initial=0) < 0.35, "a head, perhaps, and no face"
    np.testing.assert_array_equal(astronaut.image, before)


def test_redacted_image_equals_its_decoded_jpeg(astronaut: SourceImage) -> None:
    seen = Privacy({"faces": Fixed([182, 58, 270, 178])}).redact_image(astronaut)
    np.testing.assert_array_equal(seen.image, decode_jpeg(seen.jpeg))
    assert (seen.key, seen.image_id, seen.origin) == (astronaut.key, astronaut.image_id, astronaut.origin)


@pytest.mark.parametrize("method", REDACTION_METHODS)
def test_pixels_outside_the_box_change_only_by_reencoding(astronaut: SourceImage, method: Any) -> None:
    """Exact equality: without chroma subsampling the 8 x 8 blocks of a JPEG are independent of each other."""
    seen = Privacy({"faces": Fixed([182, 58, 270, 178], [400, 300, 430, 340])}, method=method).redact_image(astronaut)
    plain = decode_jpeg(encode_jpeg(astronaut.image))
    touched = np.zeros(plain.shape[:2], bool)
    for place in seen.redacted_boxes:
        left, top, right, bottom = place.covered_xyxy
        touched[top // 8 * 8 : -(-bottom // 8) * 8, left // 8 * 8 : -(-right // 8) * 8] = True
    np.testing.assert_array_equal(seen.image[~touched], plain[~touched])
    assert np.abs(seen.image[~touched].astype(int) - astronaut.image[~touched]).mean() < 2
    assert (seen.image[touched] != plain[touched]).mean() > 0.5


def test_image_without_detections_is_unchanged(astronaut: SourceImage) -> None:
    for detectors in ({}, {"faces": Fixed()}, {"faces": Fixed([600, 600, 640, 640])}):  # the last box lies outside the image
        assert Privacy(detectors).redact_image(astronaut) is astronaut


def test_overlapping_boxes_of_several_kinds() -> None:
    detectors = {"faces": Fixed([20, 20, 60, 60], [40, 30, 80, 70]), "plates": Fixed([30, 40, 70, 50], score=0.9)}
    privacy = Privacy(detectors, method="fill")
    image = source_image(noise())
    seen = privacy.redact_image(image)
    assert [(p.kind, p.score) for p in seen.redacted_boxes] == [("faces", 0.5), ("faces", 0.5), ("plates", 0.9)]
    assert np.abs(seen.image[20:60, 20:60].astype(int) - 128).max() <= 4
    assert privacy.counts(seen.redacted_boxes) == {
        "privacy/images_searched": 1,
        "privacy/images_covered": 1,
        "privacy/faces": 2,
        "privacy/plates": 1,
    }
    assert privacy.counts(image.redacted_boxes) == {
        "privacy/images_searched": 1,
        "privacy/images_covered": 0,
        "privacy/faces": 0,
        "privacy/plates": 0,
    }
    assert Privacy({}).counts(()) == {}


def test_identity() -> None:
    one = Privacy({"faces": Fixed([1, 1, 5, 5])})
    others = [
        Privacy({"faces": Fixed([1, 1, 5, 5])}, method="fill"),
        Privacy({"faces": Fixed([1, 1, 5, 5])}, dilate=2),
        Privacy({"faces": Fixed([1, 1, 5, 5])}, cells=3),
        Privacy({"faces": Fixed([1, 1, 5, 6])}),
        Privacy({"heads": Fixed([1, 1, 5, 5])}),
        Privacy({}),
    ]
    assert len({p.identity() for p in (one, *others)}) == 7
    assert Privacy({"faces": Fixed([1, 1, 5, 5])}).identity() == one.identity()
    assert Privacy({}).identity() == "none"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "gauss"}, "privacy.method is 'gauss': expected blur, pixelate, fill"),
        ({"dilate": 1.1}, r"privacy.dilate is 1.1: expected 1.25"),
        ({"cells": 0}, "privacy.cells is 0"),
        ({"cells": 40}, "more cells would show a face"),
        ({"take_down": "no.txt"}, "the take-down list no.txt cannot be read"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Privacy({}, **options)


# Metadata


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = PRIVATE  # ImageDescription
    tags[0xA431] = PRIVATE  # BodySerialNumber
    tags.get_ifd(0x8825)[1] = "N"  # GPS
    return tags


def profile() -> bytes:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert b"s\0R\0G\0B\0" in srgb, "its name stands in it"
    return srgb


def png_text() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", PRIVATE)
    info.add_itxt("XML:com.adobe.xmp", PRIVATE)
    return info


KINDS: dict[str, dict[str, Any]] = {
    "jpg": {"exif": exif(), "xmp": PRIVATE.encode(), "comment": PRIVATE, "icc_profile": profile(), "quality": 95},
    "png": {"exif": exif(), "pnginfo": png_text(), "icc_profile": profile()},
    "webp": {"exif": exif(), "xmp": PRIVATE.encode(), "icc_profile": profile(), "lossless": True},
    "tif": {"exif": exif(), "icc_profile": profile()},
    "bmp": {},
}


@pytest.mark.parametrize("found", [True, False], ids=["covered", "as it came"])
@pytest.mark.parametrize("kind", KINDS)
def test_redacted_jpegs_have_no_metadata(tmp_path: Path, kind: str, found: bool) -> None:
    path = tmp_path / f"photo.{kind}"
    Image.fromarray(noise()).save(path, **KINDS[kind])
    raw = path.read_bytes()
    assert kind == "bmp" or PRIVATE.encode() in raw
    privacy = Privacy({"faces": Fixed([20, 20, 50, 50])} if found else {})
    source = privacy.redact_source(open_source(str(path)))
    image = source.load(source.references[0])
    assert len(image.redacted_boxes) == found
    assert list_metadata(image.jpeg) == []
    for secret in (PRIVATE.encode(), b"Exif", b"http://ns.adobe.com", b"Photoshop", b"s\0R\0G\0B\0", b"sRGB"):
        assert secret not in image.jpeg
    with Image.open(io.BytesIO(image.jpeg)) as read:
        assert not {"exif", "xmp", "comment", "photoshop"} & set(read.info)
    np.testing.assert_array_equal(image.image, decode_jpeg(image.jpeg))
    assert path.read_bytes() == raw, "originals are never written"


# The take-down list


def photos(folder: Path, number: int = 4) -> Source:
    folder.mkdir()
    for place in range(number):
        Image.fromarray(noise() // (place + 1)).save(folder / f"{place}.png")
    return open_source(str(folder))


def test_taken_down_images_are_not_read(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    first, second, third, fourth = source.references
    (tmp_path / "ids.txt").write_text(f"{first.image_id}\n{third.key}  # a letter\n\n")
    private = Privacy({}, take_down=str(tmp_path / "ids.txt")).redact_source(source)
    assert [reference.key for reference in private.references] == ["0", "1", "2", "3"]
    for reference in (first, third):
        (tmp_path / "photos" / reference.origin).unlink()
        with pytest.raises(SkipSampleError, match="is on the take-down list") as caught:
            private.load(reference)
        assert caught.value.reason == "taken_down"
    assert [private.load(reference).key for reference in (second, fourth)] == ["1", "3"]


# The audit and the page


def shard_with(folder: Path, number: int, covered: dict[int, list[tuple[int, int, int, int]]], score: float = 0.5) -> Path:
    """Write a shard of three images with an audit that lists redacted boxes in some of them."""
    shard, audit, samples = folder / f"sa_{number:06d}.tar", RedactionAudit(), []
    for place in range(3):
        record, jpeg = make_sample(3 * number + place)
        boxes = tuple(
            RedactedBox(kind="faces", score=score, found_xyxy=tuple(map(float, box)), covered_xyxy=box, method="blur")  # type: ignore[arg-type]
            for box in covered.get(place, [])
        )
        audit.add(record, boxes)
        samples.append((record, jpeg))
    audit.write(shard)
    write_shard(shard, samples)
    return shard


def test_audit(tmp_path: Path) -> None:
    shard = shard_with(tmp_path, 0, {0: [(1, 2, 30, 40)], 2: [(0, 0, 9, 9), (5, 5, 20, 20)]})
    shard_with(tmp_path, 1, {})
    path = audit_path(shard)
    assert path == tmp_path / "privacy" / "sa_000000.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "key": "sa_000000",
        "image_id": 0,
        "kind": "faces",
        "score": 0.5,
        "found_xyxy": [1.0, 2.0, 30.0, 40.0],
        "covered_xyxy": [1, 2, 30, 40],
        "method": "blur",
    }
    assert audit_path(tmp_path / "sa_000001.tar").read_bytes() == b"", "looked at, and nothing found"
    assert [(key, place.covered_xyxy) for key, place in read_audit(shard)] == [
        ("sa_000000", (1, 2, 30, 40)),
        ("sa_000002", (0, 0, 9, 9)),
        ("sa_000002", (5, 5, 20, 20)),
    ]
    assert list(read_audit(tmp_path / "sa_000009.tar")) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '{"key": "a", "image_id": 1, "found_xyxy": [], "covered_xyxy": 3}'])
def test_rejects_invalid_audit_lines(tmp_path: Path, line: str) -> None:
    shard = shard_with(tmp_path, 0, {})
    audit_path(shard).write_text(line + "\n")
    with pytest.raises(ShardError, match=r"sa_000000.jsonl, line 1 is not a line of an audit"):
        list(read_audit(shard))


def test_review(tmp_path: Path) -> None:
    shard_with(tmp_path, 0, {0: [(1, 2, 30, 40)], 2: [(0, 0, 9, 9), (5, 5, 20, 20)]})
    shard_with(tmp_path, 1, {0: [(40, 20, 64, 48)]}, score=0.25)
    page = write_privacy_review(tmp_path).read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3 + 3
    assert page.index("faces 0.25") < page.index("faces 0.50"), "the least certain first"
    assert page.count("http") == 0, "nothing is loaded from anywhere"
    for number in ("<b>6</b>", "<b>3</b>", "<b>4</b>"):  # images, of which covered, boxes
        assert number in page


def test_review_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_engine.privacy.review.MAX_REDACTED", 5)
    monkeypatch.setattr("data_engine.privacy.review.MAX_CLEAR", 2)
    for number in range(4):
        shard_with(tmp_path, number, {0: [(1, 2, 30, 40)], 1: [(1, 2, 30, 40)] * 4})
    assert write_privacy_review(tmp_path).read_text().count("<img") == 5 + 2


def test_review_rejects_the_audit_of_another_shard(tmp_path: Path) -> None:
    first, second = (shard_with(tmp_path, number, {0: [(1, 2, 30, 40)]}) for number in (0, 1))
    audit_path(first).write_bytes(audit_path(second).read_bytes())
    with pytest.raises(ShardError, match=r"names an image that the shard does not contain .*sa_000000.tar, key sa_000003"):
        write_privacy_review(tmp_path)


def test_review_without_redactions(tmp_path: Path) -> None:
    shard_with(tmp_path, 0, {})
    assert "Nothing was redacted in these images." in write_privacy_review(tmp_path).read_text()
    shard_with(tmp_path / "b", 0, {place: [(1, 1, 9, 9)] for place in range(3)})
    assert "Every image has a redaction." in write_privacy_review(tmp_path / "b").read_text()
