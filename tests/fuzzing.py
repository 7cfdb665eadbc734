"""Seeded random corruption of bytes, tars and JSON, as by a failing disk, a bad download or a malicious sender."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np

from sam_train.records import ImageRecord, MaskRecord, Provenance
from sam_train.rle import encode_rle
from sam_train.shards import encode_jpeg

BLOCK = tarfile.BLOCKSIZE
NAMES = (
    "../../up.jpg",
    "/etc/x.jpg",
    "a" * 150 + ".jpg",
    "a\udcff.jpg",
    ".jpg",
    "a.b.jpg",
    "sa_0.JPG",
    "",
    "a b.json",
    "\x1b[2J.jpg",
)
PAX = (b"19 size=-1000000000\n", b"30 size=99999999999999999999\n", b"99999999999 path=a\n", b"= = =\n", b"11 path=\xff\xfe\n")
TYPES = b"01234567xgLKSDVMNXA\x00\xff"
_DEEP = "[" * 900 + "]" * 900


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change up to eight bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Remove the end."""
    return data[: rng.randrange(len(data) + 1)]


def splice_bytes(data: bytes, rng: random.Random) -> bytes:
    """Remove a part, duplicate it, or fill it with zeros or noise."""
    begin = rng.randrange(len(data) + 1)
    end = min(len(data), begin + rng.choice((1, 7, BLOCK, 3 * BLOCK, 5000)))
    piece = data[begin:end]
    return data[:begin] + rng.choice((b"", piece * 2, bytes(len(piece)), rng.randbytes(len(piece)))) + data[end:]


def corrupt_header(data: bytes, rng: random.Random) -> bytes:
    """Change a field of one tar header and correct its checksum, so that readers accept the header."""
    headers = [at for at in range(0, len(data) - BLOCK, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return flip_bytes(data, rng)
    at = rng.choice(headers)
    header = bytearray(data[at : at + BLOCK])
    kind = rng.randrange(5)
    if kind == 0:
        size = rng.choice((b"77777777777", b"\xff" * 11, b"-0000000001", b"\x80" + b"\xff" * 10, b"00000000000", b"00000001000"))
        header[124:136] = size.ljust(12, b"\0")
    elif kind == 1:
        header[156] = rng.choice(TYPES)
    elif kind == 2:
        header[0:100] = rng.choice(NAMES).encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    elif kind == 3:
        place = rng.randrange(BLOCK)
        header[place] = rng.randrange(256)
    else:
        header[345:500] = rng.randbytes(155)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return data[:at] + bytes(header) + data[at + BLOCK :]


def prepend_extension_header(data: bytes, rng: random.Random) -> bytes:
    """Insert a GNU or POSIX extension header at the start: chains of long names, headers with other sizes."""
    stream = io.BytesIO()
    kind = rng.randrange(3)
    if kind == 0:
        for _ in range(rng.choice((1, 2, 5, 50, 50, 1200))):
            stream.write(_header(b"././@LongLink", rng.choice(b"LK"), 0))
    else:
        lines = rng.choice(
            (
                b"19 size=-1000000000\n",
                b"30 size=99999999999999999999\n",
                b"99999999999 path=a\n",
                b"= = =\n",
                b"12 path=\xff\xfe\n",
            )
        )
        stream.write(_header(b"pax", rng.choice(b"xgX"), len(lines)) + lines.ljust(BLOCK, b"\0"))
    return stream.getvalue() + data


def _header(name: bytes, kind: int, size: int) -> bytes:
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0)
    header += b" " * 8 + bytes([kind]) + bytes(100) + b"ustar  \0" + bytes(247)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


TAR_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bytes,
    truncate,
    splice_bytes,
    corrupt_header,
    corrupt_header,
    prepend_extension_header,
    lambda data, rng: splice_bytes(corrupt_header(data, rng), rng),
)

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    -(2**70),
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "x" * 5000,
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": 1},
    [1e308] * 4,
    [10**400] * 4,
    [-5, -5, -5, -5],
    [2**40, 2**40],
    [-48, -64],
    [48.0, 64.0],
)


def mutate_json(document: Any, rng: random.Random) -> bytes:
    """Replace one to three values, or remove, add or rename keys; sometimes nest deeply or make the JSON invalid."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        _mutate(document, rng)
    text = json.dumps(document)
    kind = rng.randrange(12)
    if kind == 0:
        text = text.replace("[", _DEEP[: rng.randrange(1800)] + "[", 1)
    elif kind == 1:
        text = text.replace("1", "9" * rng.choice((20, 500, 5000)), 1)
    elif kind == 2:
        text = text.replace('"area"', '"area":' + "[" * (depth := rng.randint(200, 995)) + "]" * depth + ',"area"', 1)
    data = text.encode("utf-8", "surrogatepass")
    return flip_bytes(data, rng) if kind == 3 else truncate(data, rng) if kind == 4 else data


def _mutate(document: Any, rng: random.Random) -> None:
    places = list(_places(document))
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "id", "\ud800", "a" * 3000))] = rng.choice(VALUES)
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def _places(value: Any) -> Any:
    """Return every (container, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def mutate_rle_counts(counts: str, rng: random.Random) -> str:
    """Change, remove or repeat characters of a count string, or generate a new one."""
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(chr(rng.randint(40, 120)) for _ in range(rng.randrange(30)))
    letters = list(counts)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(letters) + 1)
        letters[place : place + rng.randrange(3)] = [
            chr(rng.choice((48, 79, 80, 111, rng.randint(48, 111)))) for _ in range(rng.randrange(3))
        ]
    if kind == 1:
        return "".join(letters) + "o" * rng.randrange(12) + "0"
    return "".join(letters)


def num_cases(*, in_full: int) -> int:
    """Return the number of cases of a test: a quarter, or all if the environment has SAM_TRAIN_FUZZ=full (takes minutes)."""
    return in_full if os.environ.get("SAM_TRAIN_FUZZ") == "full" else in_full // 4


def seeded_random(case: int) -> random.Random:
    """Return the random generator of a case."""
    return random.Random(case)  # noqa: S311


HEIGHT, WIDTH = 24, 32


def small_sample(index: int) -> tuple[ImageRecord, bytes]:
    """Return record and JPEG of a small image of noise with two masks."""
    random_numbers = np.random.default_rng(index)
    image = random_numbers.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    masks = []
    for number in range(2):
        mask = random_numbers.random((HEIGHT, WIDTH)) < 0.05
        mask[5 : 12 + number, 6:20] = True
        rows, columns = np.nonzero(mask)
        x, y = float(columns.min()), float(rows.min())
        provenance = Provenance(stage="import", checkpoint="", annotator="a", config="", prompts=[[1.0, 2.0, 1.0]])
        masks.append(
            MaskRecord(
                id=number,
                segmentation=encode_rle(mask),
                bbox=[x, y, float(columns.max() + 1 - x), float(rows.max() + 1 - y)],
                area=int(mask.sum()),
                predicted_iou=0.9,
                stability_score=0.95,
                crop_box=[0.0, 0.0, float(WIDTH), float(HEIGHT)],
                point_coords=[[7.0, 6.0]],
                provenance=provenance if number else None,
            )
        )
    record = ImageRecord(key=f"sa_{index}", image_id=index, width=WIDTH, height=HEIGHT, masks=masks)
    return record, encode_jpeg(image, 60)


SAMPLES = [small_sample(index) for index in range(3)]
DOCUMENTS = [json.loads(record.to_json()) for record, _ in SAMPLES]
