"""The interface of evaluation protocols: list the images, measure each of them, summarize all measurements.

The steps are separate so that an evaluation can be interrupted and divided: a measurement is plain JSON that the result cache
stores (`result_cache`), and the summary needs nothing else. An interrupted evaluation resumes, and several processes can
share one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam_train.errors import ConfigError
from sam_train.inference import Predictor
from sam_train.shards import Sample, expand_shards
from sam_train.shards.index import IndexedSample, index_shard, read_sample

Measurement = dict[str, Any]
"""Measurement of one image: numbers, strings, lists and dictionaries of them, as JSON holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationImage:
    """One image to evaluate on, not read yet."""

    number: int
    """Position, counted from 1; the same in every run over the same data, so that it can seed random choices."""
    name: str
    source: Any
    """Location of the image and its ground truth, in a form of the protocol that listed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Results of a protocol, with published figures for comparison."""

    measures: Mapping[str, float]
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Title of a column -> measure -> published figure."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Results by part, such as one row per data set; all rows have the same keys."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Key of a row -> title of its column, for the keys that are printed."""
    notes: Sequence[str] = ()
    """Remarks that a reader of the results needs."""


class EvaluationProtocol(ABC):
    """A method to measure a model."""

    @abstractmethod
    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        """Return all images to evaluate on. Raises ConfigError if the config lacks data of the protocol or it does not exist."""

    @abstractmethod
    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        """Return the measurement of one image; it depends only on the weights, not on earlier measurements."""

    @abstractmethod
    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        """Summarize measurements in any order. Raises ConfigError if no image has a mask to measure."""


def list_shard_images(shards: str | None) -> list[EvaluationImage]:
    """Return every image of the shards in order; `source` is its `IndexedSample`.

    Raises ConfigError if `shards` is empty or matches no shard.
    """
    if not shards:
        raise ConfigError("this protocol evaluates on shards: give shards=FOLDER (or a glob of .tar files)")
    entries = [entry for shard in expand_shards(shards) for entry in index_shard(shard)]
    return [EvaluationImage(number=number, name=entry.key, source=entry) for number, entry in enumerate(entries, start=1)]


def load_sample(image_entry: EvaluationImage) -> Sample:
    """Read image and record of an image that `list_shard_images` returned."""
    assert isinstance(image_entry.source, IndexedSample)
    return read_sample(image_entry.source)


def mean(values: Sequence[float]) -> float:
    """Return the mean, or 0 for no values, as JSON has no NaN."""
    return float(sum(values) / len(values)) if len(values) else 0.0
