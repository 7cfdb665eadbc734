"""Sources: all kinds of image files, names, links, URLs, and corrupt tars."""

from __future__ import annotations

import base64
import http.server
import io
import pickle
import re
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_engine.sources import LISTING_REASONS, LOAD_REASONS, Source, open_source, remote
from data_engine.structures import SourceImage
from sam_train.errors import ConfigError, ShardError, SkipSampleError
from sam_train.records import KEY_PATTERN, ImageRecord
from sam_train.shards import decode_jpeg, encode_jpeg, write_shard

HEIGHT, WIDTH = 48, 64
# 24 x 8 pixels of (200, 30, 30), chroma subsampled three to one: libjpeg reads it, TurboJPEG refuses it.
RARE_SUBSAMPLING = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/"
    "2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCAAIABgDATEAAhEBAxEB/8QA"
    "FQABAQAAAAAAAAAAAAAAAAAAAAX/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABAb/xAAUEQEAAAAAAAAAAAAAAAAAAAAA"
    "/9oADAMBAAIRAxEAPwCOAKof/9k="
)


def photo() -> np.ndarray:
    """Return a smooth image with a red top left corner, which shows rotations and survives JPEG compression."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([np.zeros_like(rows), rows * 2, columns * 2], -1).astype(np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = [250, 0, 0]
    return image


def saved(image: Image.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb() -> bytes:
    """A PNG of 60 bytes whose header claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


def tiff_16_bit(pixels: np.ndarray, orientation: int) -> bytes:
    height, width, _ = pixels.shape
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: 2, 273: 0, 274: orientation, 277: 3, 278: height, 279: pixels.nbytes}
    after = 8 + 2 + 12 * len(tags) + 4
    tags |= {258: after, 273: after + 6}
    types = {273: 4, 279: 4}
    entries = b"".join(struct.pack("<HHII", t, types.get(t, 3), 3 if t == 258 else 1, v) for t, v in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<HHH", 16, 16, 16) + pixels.astype("<u2").tobytes()


def load(folder: Path, name: str, data: bytes, **options: int) -> SourceImage:
    """Load the one image of a folder that contains `data` as file `name`, and check the invariants of every image."""
    (folder / name).write_bytes(data)
    source = open_source(folder, **options)
    loaded = source.load(source.references[0])
    assert loaded.image.dtype == np.uint8
    assert loaded.image.ndim == 3
    assert loaded.image.shape[2] == 3
    np.testing.assert_array_equal(decode_jpeg(loaded.jpeg), loaded.image, "a reader of the shard sees other pixels")
    with Image.open(io.BytesIO(loaded.jpeg)) as stored:
        assert stored.getexif().get(0x0112, 1) == 1, "a viewer would turn what the shard holds"
    return loaded


def assert_close(image: np.ndarray, expected: np.ndarray, tolerance: float = 3) -> None:
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).mean() < tolerance


@pytest.mark.parametrize("image", [photo(), photo()[..., 1]], ids=["rgb", "gray"])
def test_plain_jpeg_is_stored_unchanged(tmp_path: Path, image: np.ndarray) -> None:
    data = saved(image, "JPEG", quality=90, progressive=True)
    loaded = load(tmp_path, "a.jpg", data)
    assert loaded.jpeg == data
    assert_close(loaded.image, image if image.ndim == 3 else np.repeat(image[..., None], 3, 2))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, upright: object, file_format: str) -> None:
    quality = {"quality": 95} if file_format in ("JPEG", "WEBP") else {}
    data = saved(photo(), file_format, exif=exif(orientation), **quality)
    loaded = load(tmp_path, f"a.{file_format.lower()}", data)
    assert_close(loaded.image, upright(photo()))  # type: ignore[operator]


def test_jpeg_with_orientation_1_or_corrupt_exif_is_stripped_but_not_reencoded(tmp_path: Path) -> None:
    plain = saved(photo(), "JPEG")
    for tags in (exif(1), b"Exif\0\0 not a TIFF header"):
        data = saved(photo(), "JPEG", exif=tags, comment=b"by me")
        assert b"Exif" in data
        assert load(tmp_path, "a.jpg", data).jpeg == plain


def test_metadata_of_a_source_shard_are_not_copied(tmp_path: Path) -> None:
    """Nor does its orientation, which no reader of shards applies: the masks lie on the pixels as they are stored."""
    data = saved(photo(), "JPEG", exif=exif(6), quality=95)
    source = open_source(write_tar(tmp_path / "a.tar", [("sa_1.jpg", data), ("sa_1.json", pair()[1])]))
    loaded = source.load(source.references[0])
    assert loaded.jpeg == saved(photo(), "JPEG", quality=95)
    np.testing.assert_array_equal(loaded.image, decode_jpeg(data))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    loaded = load(tmp_path, "a.jpg", saved(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95))
    assert_close(loaded.image, photo())
    with Image.open(io.BytesIO(loaded.jpeg)) as stored:
        assert stored.mode == "RGB"


def test_jpeg_that_shard_readers_reject_is_reencoded(tmp_path: Path) -> None:
    with pytest.raises(SkipSampleError):
        decode_jpeg(RARE_SUBSAMPLING)
    assert_close(load(tmp_path, "a.jpg", RARE_SUBSAMPLING).image, np.full((8, 24, 3), [200, 30, 30]))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_by_its_own_range(tmp_path: Path, file_format: str) -> None:
    values = (1000 + 10 * np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // WIDTH).astype(np.uint16)
    image = load(tmp_path, f"a.{file_format.lower()}", saved(values, file_format)).image
    expected = (values - 1000) * (255 / (values.max() - 1000))
    assert_close(image, np.repeat(expected[..., None], 3, 2), 2)
    assert image.min() <= 3
    assert image.max() >= 252


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("scale", [4, 257])
def test_16_bit_colour_is_scaled_by_its_own_range(tmp_path: Path, extension: str, scale: int) -> None:
    _, encoded = cv2.imencode(extension, photo()[..., ::-1].astype(np.uint16) * scale)
    assert_close(load(tmp_path, f"a{extension}", encoded.tobytes()).image, photo() * (255 / 250))


def test_orientation_is_applied_to_16_bit_colour(tmp_path: Path) -> None:
    data = tiff_16_bit(photo().astype(np.uint16) * 4, orientation=6)
    assert_close(load(tmp_path, "a.tif", data).image, np.rot90(photo(), -1) * (255 / 250))
    _, encoded = cv2.imencode(".png", photo()[..., ::-1].astype(np.uint16) * 4)
    head, body = encoded.tobytes()[:33], encoded.tobytes()[33:]
    data = head + png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")) + body
    assert_close(load(tmp_path, "a.tif", data).image, np.rot90(photo(), -1) * (255 / 250))


def test_16_bit_alpha_is_composited_not_scaled(tmp_path: Path) -> None:
    deep = np.full((HEIGHT, WIDTH, 4), 400, np.uint16)
    deep[:, :32, 0] = 0  # blue of OpenCV's BGR: the darkest value
    deep[..., 3] = 65535
    deep[24:, :, 3] = 0
    image = load(tmp_path, "a.png", cv2.imencode(".png", deep)[1].tobytes()).image
    assert_close(image[:20, :28], np.full((20, 28, 3), [255, 255, 0]), 5)
    assert_close(image[28:], np.full((20, WIDTH, 3), 255), 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_channel_of_a_tiff_is_alpha_only_if_it_is_declared(tmp_path: Path, dtype: type) -> None:
    """A near infrared band is no alpha: the image would become almost white."""
    bands = np.zeros((HEIGHT, WIDTH, 4), dtype)
    bands[..., :3] = photo()[..., ::-1]
    bands[..., 3] = 40
    data = cv2.imencode(".tif", bands, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    with Image.open(io.BytesIO(data)) as image:
        assert not {1, 2} & set(np.atleast_1d(image.tag_v2.get(338, ())))
    found = load(tmp_path, "a.tif", data).image
    wanted = photo().astype(float)
    assert_close(found, wanted if dtype is np.uint8 else (wanted - wanted.min()) * (255 / np.ptp(wanted)), 8)


def test_constant_16_bit_and_float_images(tmp_path: Path) -> None:
    assert load(tmp_path, "a.png", saved(np.full((9, 9), 40000, np.uint16), "PNG")).image.max() == 0
    ramp = np.linspace(-1, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    assert load(tmp_path, "a.png", saved(ramp, "TIFF")).image[-1, -1, 0] >= 250
    ramp[0, 0] = np.nan
    with pytest.raises(SkipSampleError, match="NaN") as caught:
        load(tmp_path, "a.png", saved(ramp, "TIFF"))
    assert caught.value.reason == "unsupported_format"


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[HEIGHT // 2 :] = 0
    image = load(tmp_path, "a.png", saved(np.dstack([photo(), alpha]), "PNG")).image
    assert_close(image[:20], photo()[:20], 8)
    assert image[28:].min() > 245


def test_palette_transparent_palette_and_bilevel(tmp_path: Path) -> None:
    palette = Image.fromarray(photo()).quantize(32)
    assert_close(load(tmp_path, "a.png", saved(palette, "PNG")).image, np.asarray(palette.convert("RGB")))
    red = int(np.asarray(palette)[0, 0])
    image = load(tmp_path, "a.png", saved(palette, "PNG", transparency=red)).image
    assert image[:20, :28].min() > 240
    bilevel = Image.fromarray(photo()[..., 1] > 40)
    assert bilevel.mode == "1"
    assert_close(load(tmp_path, "a.png", saved(bilevel, "PNG")).image, np.asarray(bilevel.convert("RGB")), 12)


@pytest.mark.parametrize("file_format", ["WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(tmp_path: Path, file_format: str) -> None:
    frames = [Image.fromarray(photo()), Image.fromarray(255 - photo())]
    data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert_close(load(tmp_path, "a.png", data).image, photo(), 8)


UNUSABLE = {
    "empty_file": b"",
    "unreadable": saved(photo(), "JPEG")[:-200],
    "unsupported_format": b"this is a text, not an image\n" * 9,
    "too_large": bomb(),
    "too_small": saved(photo()[:, :7], "PNG"),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_unusable_images_are_skipped_with_reason(tmp_path: Path, reason: str) -> None:
    with pytest.raises(SkipSampleError) as caught:
        load(tmp_path, "some name.jpg", UNUSABLE[reason])
    assert caught.value.reason == reason
    assert caught.value.reason in LOAD_REASONS
    assert caught.value.key.startswith("some_name_")
    assert "some name.jpg" in str(caught.value)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_file_is_skipped_or_complete(tmp_path: Path, file_format: str) -> None:
    whole = saved(photo(), file_format)
    for length in [0, 1, 2, 4, 12, 30, *range(40, len(whole) - 20, max(1, len(whole) // 23))]:
        with pytest.raises(SkipSampleError) as caught:
            load(tmp_path, "a.png", whole[:length])
        assert caught.value.reason in ("empty_file", "unreadable", "unsupported_format"), length


def test_truncated_16_bit_colour(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 999, (HEIGHT, WIDTH, 3), np.uint16)
    _, encoded = cv2.imencode(".png", noise)
    with pytest.raises(SkipSampleError) as caught:
        load(tmp_path, "a.png", encoded.tobytes()[: len(encoded) // 2])
    assert caught.value.reason == "unreadable"


def test_pixel_limit_can_be_set_and_exceeds_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo(), "PNG")
    with pytest.raises(SkipSampleError, match="64 x 48"):
        load(tmp_path, "a.png", data, max_pixels=HEIGHT * WIDTH - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Image.open would now reject any image
    source = open_source(tmp_path, max_pixels=HEIGHT * WIDTH)
    assert source.load(source.references[0]).image.shape == (HEIGHT, WIDTH, 3)


def test_rejects_sides_beyond_the_jpeg_limit(tmp_path: Path) -> None:
    with pytest.raises(SkipSampleError) as caught:
        load(tmp_path, "a.png", saved(np.zeros((8, 65_501), np.uint8), "PNG"))
    assert caught.value.reason == "too_large"


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(saved(photo()[:16, :16], "PNG"))


def keys(source: Source) -> dict[str, str]:
    return {reference.origin: reference.key for reference in source.references}


def test_folder_is_searched_in_order_for_images_only(tmp_path: Path) -> None:
    fill(tmp_path, "b.JPG", "a.png", "sub/deep/c.WebP", "notes.md", "d.gif", ".hidden.png", ".git/e.png", "sub/._f.png")
    source = open_source(str(tmp_path))
    assert [r.origin for r in source.references] == ["a.png", "b.JPG", "sub/deep/c.WebP"]
    assert [r.key for r in source.references][:2] == ["a", "b"]
    assert source.skipped == {}
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301
    assert source.load(source.references[2]).origin == "sub/deep/c.WebP"


def test_keys_are_safe_unique_and_stable(tmp_path: Path) -> None:
    names = ["plain-1_A.png", "plain-1_a.png", "x.jpg", "x.png", "Zürich 1.png", "写真.png", "sub/x.png", "sub_x.png", "y.png"]
    long = "n" * 230 + ".png"
    fill(tmp_path, *names, long)
    first = keys(open_source(tmp_path))
    assert len(set(first.values())) == len(names) + 1
    assert all(KEY_PATTERN.fullmatch(key) for key in first.values())
    assert first["y.png"] == "y"
    for changed in ("x.jpg", "x.png", "Zürich 1.png", "写真.png", "sub/x.png", "plain-1_A.png", long):
        assert first[changed] != Path(changed).stem
    assert first["Zürich 1.png"].startswith("Z_rich_1_")
    assert len(first[long]) == 200
    ids = {r.origin: r.image_id for r in open_source(tmp_path).references}
    assert ids["y.png"] == 210_155_737_509_759  # first 6 bytes of sha256(b"y.png"): a change would orphan every shard made
    assert max(ids.values()) < 2**48
    fill(tmp_path, "0.png")
    assert keys(open_source(tmp_path)) == {**first, "0.png": "0"}


def test_glob_gives_the_keys_of_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, "in/a.png", "in/sub/b.png", "in/sub/c.jpg", "in/sub/note.txt", "out/d.png")
    folder = keys(open_source(tmp_path / "in"))
    assert keys(open_source(f"{tmp_path}/in/**/*")) == folder
    assert keys(open_source(f"{tmp_path}/in/**/*.png")) == {k: v for k, v in folder.items() if k.endswith("png")}
    assert keys(open_source(tmp_path / "in" / "a.png")) == {"a.png": "a"}


def test_one_file_with_brackets_in_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "[x]/a[1].png", "[x]/a1.png")
    assert list(keys(open_source(tmp_path / "[x]" / "a[1].png"))) == ["a[1].png"]


def test_list_file_keeps_its_order(tmp_path: Path) -> None:
    fill(tmp_path, "pics/b.png", "pics/a.png", "elsewhere/c d.png")
    (tmp_path / "pics" / "list.txt").write_text("b.png\r\n\n../elsewhere/c d.png\na.png\n", encoding="utf-8-sig")
    source = open_source(tmp_path / "pics" / "list.txt")
    assert [r.origin for r in source.references] == ["b.png", "../elsewhere/c d.png", "a.png"]
    assert source.load(source.references[1]).image.shape == (16, 16, 3)
    (tmp_path / "pics" / "list.txt").write_text("a.png\nmissing.png\n")
    with pytest.raises(ConfigError, match=r"line 2.*missing\.png"):
        open_source(tmp_path / "pics" / "list.txt")
    (tmp_path / "pics" / "list.txt").write_text("a.png\n./a.png\n")
    with pytest.raises(ConfigError, match="the same key"):
        open_source(tmp_path / "pics" / "list.txt")


def test_error_without_images_states_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path, "other/a.gif")
    (tmp_path / "empty.txt").write_text("\n")
    for source in ("empty", "missing", "other", "missing/*.png", "other/*", "missing.png", "missing.tar", "empty.txt", "no.txt"):
        with pytest.raises(ConfigError) as caught:
            open_source(tmp_path / source)
        assert source in str(caught.value)
        if not source.endswith((".tar", ".txt")):
            assert ".jpg .jpeg .png .webp .bmp .tif .tiff" in str(caught.value)


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, "in/a.png", "secret/b.png")
    folder = tmp_path / "in"
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "outside.png").symlink_to(tmp_path / "secret" / "b.png")
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    (folder / "linked").symlink_to(tmp_path / "secret")
    expected = {"outside.png": "outside_source", "broken.png": "not_a_file", "linked": "linked_folder"}
    source = open_source(folder)
    assert list(keys(source)) == ["a.png", "inside.png"]
    assert source.skipped == expected
    assert set(expected.values()) == set(LISTING_REASONS)
    assert "linked/b.png" not in keys(open_source(f"{folder}/**/*.png"))
    (folder / "a.png").unlink()
    with pytest.raises(ConfigError, match="outside_source"):
        open_source(folder)


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    try:
        fill(tmp_path, "caf\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    source = open_source(tmp_path)
    assert source.references[0].origin == "caf\\xe9.png"
    assert source.load(source.references[0]).key.startswith("caf__")


def shard(folder: Path, name: str = "sa_000000.tar", *numbers: int) -> Path:
    def samples() -> list[tuple[ImageRecord, bytes]]:
        records = [ImageRecord(key=f"sa_{n}", image_id=n, width=WIDTH, height=HEIGHT, masks=[]) for n in numbers or (7, 3, 5)]
        return [(record, encode_jpeg(np.roll(photo(), record.image_id, 1))) for record in records]

    write_shard(folder / name, samples())
    return folder / name


def test_tar_round_trip(tmp_path: Path) -> None:
    first, second = shard(tmp_path), shard(tmp_path, "sa_000001.tar", 8)
    for name in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/sa_{{000000..000001}}.tar"):
        source = open_source(name)
        assert [(r.key, r.image_id) for r in source.references] == [("sa_7", 7), ("sa_3", 3), ("sa_5", 5), ("sa_8", 8)]
    loaded = source.load(source.references[1])
    with tarfile.open(first) as tar:
        assert loaded.jpeg == tar.extractfile("sa_3.jpg").read()  # type: ignore[union-attr]
    np.testing.assert_array_equal(loaded.image, decode_jpeg(loaded.jpeg))
    assert loaded.record == ImageRecord(key="sa_3", image_id=3, width=WIDTH, height=HEIGHT, masks=[])
    assert loaded.origin == "sa_000000.tar/sa_3.jpg"
    assert [r.key for r in open_source(second).references] == ["sa_8"]


def test_shard_samples_are_read_by_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(shard(tmp_path))
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("the tar was walked again"))
    assert [source.load(r).image_id for r in reversed(source.references)] == [5, 3, 7]


def test_rejects_the_same_key_in_two_shards(tmp_path: Path) -> None:
    shard(tmp_path, "sa_000000.tar", 1, 2)
    shard(tmp_path, "sa_000001.tar", 2, 3)
    with pytest.raises(ConfigError, match="sa_000001"):
        open_source(tmp_path)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str = "sa_1", image_id: int = 1, width: int = WIDTH) -> tuple[bytes, bytes]:
    return encode_jpeg(photo()), ImageRecord(key=key, image_id=image_id, width=width, height=HEIGHT, masks=[]).to_json()


def test_member_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    jpeg, document = pair()
    members = [("./LICENSE.txt", b"x"), ("../../tmp/sa_1.jpg", jpeg), ("/etc/sa_1.json", document), ("._sa_1.jpg", b"x")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert [r.key for r in source.references] == ["sa_1"]
    assert source.load(source.references[0]).image.shape == (HEIGHT, WIDTH, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_image_id_when_image_is_not_first_in_the_json(tmp_path: Path) -> None:
    jpeg, document = pair(image_id=77)
    image = document[len(b'{"image":') : document.index(b',"annotations"')]
    turned = b'{"annotations":[],"image":' + image + b"}"
    source = open_source(write_tar(tmp_path / "a.tar", [("sa_1.json", turned), ("sa_1.jpg", jpeg)]))
    assert source.references[0].image_id == 77


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("sa_1.jpg", b"x")], "found only"),
        ([("sa 1.jpg", b"x"), ("sa 1.json", b"{}")], "rename the image"),
        ([("a/sa_1.jpg", b"x"), ("b/sa_1.jpg", b"y"), ("sa_1.json", b"{}")], "two members"),
        ([("sa_1.jpg", b"x"), ("sa_1.json", b"{}")], "missing key"),
        ([("sa_1.jpg", b"x"), ("sa_1.json", b'{"image":{"image_id":"1"}}')], "missing key"),
        (
            [("sa_1.jpg", b"x"), ("sa_1.json", b'{"image":{"image_id":' + b"[" * 2000 + b"]" * 2000 + b"}}")],
            "not JSON|missing key",
        ),
    ],
)
def test_rejects_tar_that_is_not_a_shard(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        open_source(write_tar(tmp_path / "a.tar", members))


def test_tar_without_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no samples"):
        open_source(write_tar(tmp_path / "a.tar", [("readme.md", b"x")]))


def test_skips_samples_whose_jpeg_contradicts_the_record(tmp_path: Path) -> None:
    for jpeg, document, reason in [
        (pair()[0], pair(width=WIDTH + 1)[1], "wrong_size"),
        (pair()[0][:-300], pair()[1], "unreadable"),
        (b"", pair()[1], "empty_file"),
        (bomb(), pair()[1], "too_large"),
    ]:
        source = open_source(write_tar(tmp_path / "a.tar", [("sa_1.jpg", jpeg), ("sa_1.json", document)]))
        with pytest.raises(SkipSampleError) as caught:
            source.load(source.references[0])
        assert caught.value.reason == reason


def header_offsets(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar.getmembers()]


def test_mutated_tar(tmp_path: Path) -> None:
    path = shard(tmp_path)
    (tmp_path / "sa_000000.manifest.json").unlink()  # as with Meta's tars: only the tar itself can tell
    whole, offsets = path.read_bytes(), header_offsets(path)
    truncated = [whole[:cut] for cut in (100, offsets[2] + 100, offsets[3] + 700, offsets[4], offsets[5] + 600)]
    flipped = []
    for offset in (offsets[0], offsets[2], offsets[5]):
        changed = bytearray(whole)
        changed[offset + 150] ^= 0x55  # in the checksum: tarfile takes this header for the end
        flipped.append(bytes(changed))
    endless = bytearray(whole)  # a size of minus one block: tarfile meets this member again and again
    endless[offsets[2] + 124 : offsets[2] + 136] = b"\xff" * 8 + (-512).to_bytes(4, "big", signed=True)
    field = slice(offsets[2] + 148, offsets[2] + 156)
    endless[field] = b" " * 8
    endless[field] = b"%06o\0 " % sum(endless[offsets[2] : offsets[2] + 512])
    zeroed = bytearray(whole)
    zeroed[offsets[2] : offsets[2] + 512] = bytes(512)
    for data in (b"", b"no tar at all" * 99, *truncated, *flipped, bytes(endless), bytes(zeroed)):
        path.write_bytes(data)
        with pytest.raises(ShardError, match="truncated"):
            open_source(path)


def test_rejects_stale_manifest_and_changed_tar(tmp_path: Path) -> None:
    path = shard(tmp_path)
    source = open_source(path)
    other = shard(tmp_path / "other", "sa_000000.tar", 7, 4, 6)  # opening looks at the last sample only
    path.write_bytes(other.read_bytes())
    with pytest.raises(ShardError, match="manifest"):
        open_source(path)
    with pytest.raises(ShardError, match="changed"):
        source.load(source.references[1])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShardError):
        source.load(source.references[2])


def test_rejects_folder_with_tars_and_images(tmp_path: Path) -> None:
    shard(tmp_path)
    fill(tmp_path, "sub/a.png")
    with pytest.raises(ConfigError, match="shards and images"):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/*.tar").references) == 3


class Pages(http.server.BaseHTTPRequestHandler):
    """A web server: `pages` has what it answers by path, a number for an error, several for one after the other."""

    pages: dict[str, list[bytes | int]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answers = self.pages.get(self.path, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(200 if isinstance(answer, bytes) else answer)
        self.end_headers()
        if isinstance(answer, bytes):
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Suppress the log."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Pages]]]:
    monkeypatch.setattr(remote, "_RETRY_PAUSES_S", (0.01, 0.01))
    pages = type("TheirPages", (Pages,), {"pages": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", pages
        server.shutdown()


def listed(folder: Path, *lines: str) -> Source:
    (folder / "list.txt").write_text("\n".join(lines))
    return open_source(folder / "list.txt")


def reason_of(source: Source, place: int) -> str:
    with pytest.raises(SkipSampleError) as caught:
        source.load(source.references[place])
    return caught.value.reason


def test_urls_and_paths_in_a_list(tmp_path: Path, web: tuple[str, type[Pages]]) -> None:
    root, pages = web
    pages.pages["/a/b.jpg?size=2"] = [saved(photo(), "JPEG")]
    fill(tmp_path, "here.png")
    source = listed(tmp_path, f"{root}/a/b.jpg?size=2", "here.png")
    assert pages.asked == [], "listing asks for nothing"
    assert [r.origin for r in source.references] == [f"{root}/a/b.jpg?size=2", "here.png"]
    first = source.references[0]
    assert re.fullmatch(KEY_PATTERN, first.key)
    assert first.key.startswith("http__")
    loaded = source.load(first)
    assert loaded.jpeg == saved(photo(), "JPEG")
    assert loaded.key == first.key
    assert source.load(source.references[1]).image.shape == (16, 16, 3)
    assert listed(tmp_path, f"{root}/a/b.jpg?size=2").references[0] == first, "key and id follow from the URL alone"


def test_http_status_determines_the_skip_reason(tmp_path: Path, web: tuple[str, type[Pages]]) -> None:
    root, pages = web
    answers: dict[str, list[bytes | int]] = {"gone": [410], "mine": [403], "broken": [500], "text": [b"<html>"], "empty": [b""]}
    pages.pages = {f"/{name}": answer for name, answer in answers.items()}
    source = listed(tmp_path, *(f"{root}/{name}" for name in (*answers, "never")), "http://127.0.0.1:9/closed", "http://[bad/")
    reasons = [reason_of(source, place) for place in range(len(source.references))]
    expected = [
        "missing",
        "forbidden",
        "unreachable",
        "unsupported_format",
        "empty_file",
        "missing",
        "unreachable",
        "unreachable",
    ]
    assert reasons == expected
    assert set(reasons) <= set(LOAD_REASONS)
    assert pages.asked.count("/broken") == 3
    assert pages.asked.count("/mine") == 1, "asking again does not help"


def test_temporary_http_failures_are_retried(tmp_path: Path, web: tuple[str, type[Pages]]) -> None:
    root, pages = web
    pages.pages["/a.png"] = [503, 429, saved(photo(), "PNG")]
    source = listed(tmp_path, f"{root}/a.png")
    assert source.load(source.references[0]).image.shape == (HEIGHT, WIDTH, 3)


def test_endless_response_is_cut_at_the_limit(tmp_path: Path, web: tuple[str, type[Pages]]) -> None:
    root, pages = web
    pages.pages["/a.png"] = [bytes(3 << 20)]
    (tmp_path / "list.txt").write_text(f"{root}/a.png")
    source = open_source(tmp_path / "list.txt", max_pixels=100)
    assert reason_of(source, 0) == "too_large"


def test_list_and_image_at_a_url(web: tuple[str, type[Pages]]) -> None:
    root, pages = web
    pages.pages = {"/x/list.txt": [b"a.png\nsub/b.png\n"], "/x/a.png": [saved(photo(), "PNG")]}
    source = open_source(f"{root}/x/list.txt")
    assert [r.path for r in source.references] == [f"{root}/x/a.png", f"{root}/x/sub/b.png"]
    assert [r.key for r in source.references] == ["a", "sub_b_" + source.references[1].key[-8:]]
    assert source.load(source.references[0]).image.shape == (HEIGHT, WIDTH, 3)
    assert open_source(f"{root}/x/a.png").references[0].key == "a"
    with pytest.raises(ConfigError, match="cannot be read"):
        open_source(f"{root}/none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_source("nowhere://bucket/images")


def test_image_deleted_after_listing_is_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    source = open_source(tmp_path)
    (tmp_path / "a.png").unlink()
    assert reason_of(source, 0) == "missing"


def test_images_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    fill(tmp_path, "photos/b.png", "photos/a.png", "photos/sub/c.png", "photos/.hidden/d.png", "photos/notes.md")
    for path in (tmp_path / "photos").rglob("*.*"):
        if path.is_file():
            bucket.put_file(str(path), f"bucket/{path.relative_to(tmp_path)}")
    near, source = open_source(tmp_path / "photos"), open_source("s3://bucket/photos")
    assert [(r.key, r.image_id, r.origin) for r in source.references] == [(r.key, r.image_id, r.origin) for r in near.references]
    assert source.references[2].path == "s3://bucket/photos/sub/c.png"
    for far_one, near_one in zip(source.references, near.references, strict=True):
        assert source.load(far_one).jpeg == near.load(near_one).jpeg
    assert [r.key for r in open_source("s3://bucket/photos/[b-z]*.png").references] == ["b"]
    bucket.rm("bucket/photos/a.png")
    assert reason_of(source, 0) == "missing"
    for nothing in ("s3://bucket/elsewhere", "s3://bucket/photos/*.jpg"):
        with pytest.raises(ConfigError, match="no files at"):
            open_source(nothing)


def test_shards_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    shard(tmp_path / "shards")
    for path in (tmp_path / "shards").iterdir():
        bucket.put_file(str(path), f"bucket/shards/{path.name}")
    near = open_source(tmp_path / "shards")
    for name in ("s3://bucket/shards", "s3://bucket/shards/sa_{000000..000000}.tar"):
        source = open_source(name)
        assert [(r.key, r.image_id, r.origin) for r in source.references] == [
            (r.key, r.image_id, r.origin) for r in near.references
        ]
        for far_one, near_one in zip(source.references, near.references, strict=True):
            one, other = source.load(far_one), near.load(near_one)
            assert (one.jpeg, one.record) == (other.jpeg, other.record)
    bucket.rm("bucket/shards/sa_000000.manifest.json")
    with pytest.raises(ConfigError, match="no readable manifest"):
        open_source("s3://bucket/shards")


def test_references_are_stored_as_columns(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}.png" for name in "abcdef"))
    references = open_source(tmp_path).references
    assert len(references) == 6
    assert [r.key for r in references[1:3]] == ["b", "c"]
    assert [r.key for r in references[::2]] == ["a", "c", "e"]
    assert references[-1].key == "f"
    assert references[1:3][1] == references[2]
    assert len(references[4:2]) == 0
    with pytest.raises(IndexError):
        references[6]
