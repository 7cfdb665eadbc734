"""Seeded damage for bytes, tars and JSON: what a torn disk, a bad download and a malicious sender do."""

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


def flipped(data: bytes, dice: random.Random) -> bytes:
    """Up to eight bytes changed."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8) if data else 0):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    """The end missing."""
    return data[: dice.randrange(len(data) + 1)]


def spliced(data: bytes, dice: random.Random) -> bytes:
    """A stretch left out, given twice, filled with zeros or with noise."""
    begin = dice.randrange(len(data) + 1)
    end = min(len(data), begin + dice.choice((1, 7, BLOCK, 3 * BLOCK, 5000)))
    piece = data[begin:end]
    return data[:begin] + dice.choice((b"", piece * 2, bytes(len(piece)), dice.randbytes(len(piece)))) + data[end:]


def with_header(data: bytes, dice: random.Random) -> bytes:
    """A field of one tar header changed, its checksum made right, so that the reader believes it."""
    headers = [at for at in range(0, len(data) - BLOCK, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return flipped(data, dice)
    at = dice.choice(headers)
    header = bytearray(data[at : at + BLOCK])
    kind = dice.randrange(5)
    if kind == 0:
        size = dice.choice((b"77777777777", b"\xff" * 11, b"-0000000001", b"\x80" + b"\xff" * 10, b"00000000000", b"00000001000"))
        header[124:136] = size.ljust(12, b"\0")
    elif kind == 1:
        header[156] = dice.choice(TYPES)
    elif kind == 2:
        header[0:100] = dice.choice(NAMES).encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    elif kind == 3:
        place = dice.randrange(BLOCK)
        header[place] = dice.randrange(256)
    else:
        header[345:500] = dice.randbytes(155)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return data[:at] + bytes(header) + data[at + BLOCK :]


def with_extension(data: bytes, dice: random.Random) -> bytes:
    """A GNU or POSIX extension in front: chains of long names, headers that say other sizes."""
    stream = io.BytesIO()
    kind = dice.randrange(3)
    if kind == 0:
        for _ in range(dice.choice((1, 2, 5, 50, 50, 1200))):
            stream.write(_header(b"././@LongLink", dice.choice(b"LK"), 0))
    else:
        lines = dice.choice(
            (
                b"19 size=-1000000000\n",
                b"30 size=99999999999999999999\n",
                b"99999999999 path=a\n",
                b"= = =\n",
                b"12 path=\xff\xfe\n",
            )
        )
        stream.write(_header(b"pax", dice.choice(b"xgX"), len(lines)) + lines.ljust(BLOCK, b"\0"))
    return stream.getvalue() + data


def _header(name: bytes, kind: int, size: int) -> bytes:
    header = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0)
    header += b" " * 8 + bytes([kind]) + bytes(100) + b"ustar  \0" + bytes(247)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


TAR_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    cut,
    spliced,
    with_header,
    with_header,
    with_extension,
    lambda data, dice: spliced(with_header(data, dice), dice),
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


def json_mutated(document: Any, dice: random.Random) -> bytes:
    """JSON with one to three values replaced, keys lost, added or renamed; sometimes nested deeply, or not JSON any more."""
    document = copy.deepcopy(document)
    for _ in range(dice.randint(1, 3)):
        _mutate(document, dice)
    text = json.dumps(document)
    kind = dice.randrange(12)
    if kind == 0:
        text = text.replace("[", _DEEP[: dice.randrange(1800)] + "[", 1)
    elif kind == 1:
        text = text.replace("1", "9" * dice.choice((20, 500, 5000)), 1)
    elif kind == 2:
        text = text.replace('"area"', '"area":' + "[" * (depth := dice.randint(200, 995)) + "]" * depth + ',"area"', 1)
    data = text.encode("utf-8", "surrogatepass")
    return flipped(data, dice) if kind == 3 else cut(data, dice) if kind == 4 else data


def _mutate(document: Any, dice: random.Random) -> None:
    places = list(_places(document))
    holder, key = dice.choice(places)
    kind = dice.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[dice.choice(("", "x", "id", "\ud800", "a" * 3000))] = dice.choice(VALUES)
    else:
        holder[key] = copy.deepcopy(dice.choice(VALUES))


def _places(value: Any) -> Any:
    """Every (holder, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def rle_mutated(counts: str, dice: random.Random) -> str:
    """A count string with characters changed, lost, repeated, or made anew."""
    kind = dice.randrange(5)
    if kind == 0:
        return "".join(chr(dice.randint(40, 120)) for _ in range(dice.randrange(30)))
    letters = list(counts)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(letters) + 1)
        letters[place : place + dice.randrange(3)] = [
            chr(dice.choice((48, 79, 80, 111, dice.randint(48, 111)))) for _ in range(dice.randrange(3))
        ]
    if kind == 1:
        return "".join(letters) + "o" * dice.randrange(12) + "0"
    return "".join(letters)


def num_cases(*, in_full: int) -> int:
    """How many cases a test tries: a quarter, or all with SAM_TRAIN_FUZZ=full in the environment, which takes minutes."""
    return in_full if os.environ.get("SAM_TRAIN_FUZZ") == "full" else in_full // 4


def seeded(case: int) -> random.Random:
    return random.Random(case)  # noqa: S311


HEIGHT, WIDTH = 24, 32


def small_sample(index: int) -> tuple[ImageRecord, bytes]:
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
