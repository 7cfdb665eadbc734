from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_train.errors import ShardError
from sam_train.records import ImageRecord, MaskRecord, Provenance, check_key

SA1B_KEYS = ("id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")
PROVENANCE = Provenance(
    stage="semi_automatic", checkpoint="ab12", annotator="simulated", config="cd34", prompts=[[1.0, 2.0, 1.0]], seconds=3.5
)


@pytest.fixture
def record(mask_record: Callable[..., MaskRecord]) -> ImageRecord:
    mask = np.zeros((6, 9), bool)
    mask[2:4, 3:7] = True
    masks = [mask_record(mask, mask_id=1), mask_record(mask, mask_id=2, provenance=PROVENANCE)]
    return ImageRecord(key="sa_7", image_id=7, width=9, height=6, masks=masks)


def parse(document: Any) -> ImageRecord:
    return ImageRecord.from_json(json.dumps(document).encode(), key="sa_7", shard="a.tar")


def test_record_round_trips_through_json(record: ImageRecord) -> None:
    data = record.to_json()
    again = ImageRecord.from_json(data, key="sa_7")
    assert again == record
    assert again.to_json() == data


def test_keys_are_those_of_sa1b_plus_one(record: ImageRecord) -> None:
    document = json.loads(record.to_json())
    plain, ours = document["annotations"]
    assert set(document) == {"image", "annotations"}
    assert document["image"] == {"image_id": 7, "width": 9, "height": 6, "file_name": "sa_7.jpg"}
    assert tuple(plain) == SA1B_KEYS
    assert tuple(ours) == (*SA1B_KEYS, "provenance")
    assert ours["provenance"]["prompts"] == [[1.0, 2.0, 1.0]]


def test_an_image_without_masks() -> None:
    record = ImageRecord(key="empty", image_id=0, width=1, height=1, masks=[])
    assert ImageRecord.from_json(record.to_json(), key="empty") == record


@pytest.mark.parametrize("key", ["sa_1", "a", "-", "A-b_9", "x" * 200])
def test_good_keys(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize(
    "key", ["", ".", "..", "../up", "a/b", "a\\b", "a.b", "/abs", "a b", "a\n", "a\0", "é", "~", "x" * 201, "C:"]
)
def test_rejects_invalid_keys(key: str) -> None:
    with pytest.raises(ShardError, match="rename the image"):
        check_key(key)
    with pytest.raises(ShardError):
        ImageRecord(key=key, image_id=0, width=1, height=1, masks=[])
    with pytest.raises(ShardError):
        ImageRecord.from_json(b"{}", key=key)


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("image",), DELETE, "missing key"),
        (("image", "width"), DELETE, "missing key"),
        (("image", "depth"), 3, "unknown key"),
        (("image", "width"), "9", "unexpected type str"),
        (("image", "width"), True, "unexpected type bool"),
        (("image", "height"), 6.0, "unexpected type float"),
        (("image",), [], "unexpected type list"),
        (("annotations",), {}, "unexpected type dict"),
        (("categories",), [], "unknown key"),
        (("annotations", 1, "area"), DELETE, "missing key"),
        (("annotations", 1, "area"), None, "unexpected type NoneType"),
        (("annotations", 1, "iscrowd"), 0, "unknown key"),
        (("annotations", 1, "segmentation", "counts"), [1, 2], "unexpected type list"),
        (("annotations", 1, "segmentation", "size"), DELETE, "missing key"),
        (("annotations", 1, "segmentation", "size"), [6], "a list of 2 finite numbers"),
        (("annotations", 1, "bbox"), [1, 2, 3], "a list of 4 finite numbers"),
        (("annotations", 1, "bbox"), [1, 2, 3, "4"], "a list of 4 finite numbers"),
        (("annotations", 1, "crop_box"), [0, 0, True, 1], "a list of 4 finite numbers"),
        (("annotations", 1, "point_coords"), [1.0, 2.0], "lists of 2 finite numbers"),
        (("annotations", 1, "predicted_iou"), float("nan"), "a finite number"),
        (("annotations", 1, "bbox"), [0, 0, float("inf"), 1], "a list of 4 finite numbers"),
        (("annotations", 1, "provenance", "stage"), DELETE, "missing key"),
        (("annotations", 1, "provenance", "mood"), "good", "unknown key"),
        (("annotations", 1, "provenance", "prompts"), [[1.0, 2.0]], "lists of 3 finite numbers"),
        (("annotations", 1, "provenance", "seconds"), "3", "unexpected type str"),
    ],
)
def test_schema_violations_name_shard_key_and_field(
    record: ImageRecord, path: tuple[str | int, ...], value: Any, message: str
) -> None:
    document = json.loads(record.to_json())
    node = document
    for step in path[:-1]:
        node = node[step]
    if value is DELETE:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    with pytest.raises(ShardError, match=message) as caught:
        parse(document)
    field = ".".join(str(step) for step in path).replace(".1.", "[1].")
    assert (caught.value.shard, caught.value.key, caught.value.field) == ("a.tar", "sa_7", field)


@pytest.mark.parametrize(("place", "value"), [("annotations[0]", [3]), ("annotations[0].provenance", ["x"])])
def test_rejects_values_that_should_be_objects(record: ImageRecord, place: str, value: Any) -> None:
    document = json.loads(record.to_json())
    if place.endswith("provenance"):
        document["annotations"][0]["provenance"] = value
    else:
        document["annotations"][0] = value
    with pytest.raises(ShardError, match="expected an object, got list") as caught:
        parse(document)
    assert caught.value.field == place


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"not json", b"[" * 100_000])
def test_rejects_bytes_that_are_not_json(data: bytes) -> None:
    with pytest.raises(ShardError, match="not JSON") as caught:
        ImageRecord.from_json(data, key="sa_7", shard="a.tar")
    assert (caught.value.shard, caught.value.key) == ("a.tar", "sa_7")


@pytest.mark.parametrize("document", [[], 3, None, "text"])
def test_rejects_json_that_is_not_an_object(document: Any) -> None:
    with pytest.raises(ShardError, match="expected an object"):
        parse(document)


numbers = st.floats(allow_nan=False, allow_infinity=False)
provenances = st.fixed_dictionaries(
    {
        "stage": st.text(),
        "checkpoint": st.text(),
        "annotator": st.text(),
        "config": st.text(),
        "prompts": st.lists(st.lists(numbers, min_size=3, max_size=3)),
        "seconds": numbers,
    }
)
annotations = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "segmentation": st.fixed_dictionaries({"size": st.just([4, 5]), "counts": st.text()}),
        "bbox": st.lists(numbers, min_size=4, max_size=4),
        "area": st.integers(0, 2**63 - 1),
        "predicted_iou": numbers,
        "stability_score": numbers,
        "crop_box": st.lists(numbers, min_size=4, max_size=4),
        "point_coords": st.lists(st.lists(numbers, min_size=2, max_size=2)),
        "provenance": st.none() | provenances,
    }
)


@given(st.lists(annotations, max_size=3))
def test_any_record_round_trips(values: list[dict[str, Any]]) -> None:
    masks = [MaskRecord(**value | {"provenance": value["provenance"] and Provenance(**value["provenance"])}) for value in values]
    record = ImageRecord(key="k", image_id=1, width=5, height=4, masks=masks)
    assert ImageRecord.from_json(record.to_json(), key="k") == record


@pytest.mark.parametrize("number", [10**400, 2**63, -(2**63) - 1, float("inf")])
@pytest.mark.parametrize("field", ["area", "bbox", "predicted_iou"])
def test_rejects_numbers_beyond_64_bits(mask_record: Callable[..., MaskRecord], field: str, number: float) -> None:
    document = json.loads(
        ImageRecord(key="a", image_id=1, width=8, height=8, masks=[mask_record(np.ones((8, 8), bool))]).to_json()
    )
    document["annotations"][0][field] = [0, 0, 1, number] if field == "bbox" else number
    with pytest.raises(ShardError) as caught:
        ImageRecord.from_json(json.dumps(document).encode(), key="a")
    assert caught.value.field == f"annotations[0].{field}"


def test_rejects_deeply_nested_values(mask_record: Callable[..., MaskRecord]) -> None:
    """At some depths json.loads succeeds, but str() of the value exceeds the recursion limit."""
    whole = ImageRecord(key="a", image_id=1, width=8, height=8, masks=[mask_record(np.ones((8, 8), bool))]).to_json()
    for depth in range(850, 1000, 2):
        nested = b'"bbox":' + b"[" * depth + b"]" * depth + b',"old":'
        with pytest.raises(ShardError):
            ImageRecord.from_json(whole.replace(b'"bbox":', nested), key="a")


def test_rejects_unpaired_surrogates() -> None:
    document = b'{"image":{"image_id":1,"width":8,"height":8,"file_name":"\\ud800"},"annotations":[]}'
    with pytest.raises(ShardError, match="surrogate"):
        ImageRecord.from_json(document, key="a")


@pytest.mark.parametrize("side", [0, -3, 65_536, 10**400])
@pytest.mark.parametrize("field", ["width", "height"])
def test_rejects_sizes_beyond_jpeg(field: str, side: int) -> None:
    with pytest.raises(ShardError, match="the limit of JPEG") as caught:
        ImageRecord(**{"key": "a", "image_id": 1, "width": 8, "height": 8, "masks": [], field: side})  # type: ignore[arg-type]
    assert caught.value.field == f"image.{field}"
