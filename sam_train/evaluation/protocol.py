"""What every protocol is: subjects to measure on, a measurement of each, and what all measurements come to.

The pieces are apart so that a run can be cut: a measurement is plain numbers that a file keeps (`journal`), and the summary
needs nothing else. So a run goes on where it was stopped, and several processes share one.
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
"""Numbers, texts, lists and dictionaries of them: what JSON holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationImage:
    """One image to measure on, not read yet. `number` counts from 1 and is the same in every run over the same data."""

    number: int
    name: str
    source: Any
    """Where the image and its truth lie, as the protocol that made the subject knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a protocol found, with the figures of others beside it."""

    measures: Mapping[str, float]
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Title of a column -> measure -> figure, as published."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Parts, such as a data set each; all have the same keys."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Which keys of the parts are shown in a table, and under what titles."""
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""


class EvaluationProtocol(ABC):
    """One way to measure a model."""

    @abstractmethod
    def list_images(self, shards: str | None) -> Sequence[EvaluationImage]:
        """Everything to measure on. Raises ConfigError when what the protocol needs is not named or not there."""

    @abstractmethod
    def measure(self, predictor: Predictor, image_entry: EvaluationImage) -> Measurement:
        """The measurement of one subject; equal for equal weights, whatever was measured before."""

    @abstractmethod
    def summarize(self, measurements: Sequence[Measurement]) -> Summary:
        """What the measurements come to, in whatever order. Raises ConfigError when there is nothing to measure by."""


def list_shard_images(shards: str | None) -> list[EvaluationImage]:
    """Every image of the shards, in their order; `place` is its `IndexedSample`.

    Raises ConfigError when no shards are named or none are there.
    """
    if not shards:
        raise ConfigError("this protocol measures on shards: give shards=FOLDER (or a glob of .tar files)")
    entries = [entry for shard in expand_shards(shards) for entry in index_shard(shard)]
    return [EvaluationImage(number=number, name=entry.key, source=entry) for number, entry in enumerate(entries, start=1)]


def load_sample(image_entry: EvaluationImage) -> Sample:
    """The image and record of a subject of `list_shard_images`."""
    assert isinstance(image_entry.source, IndexedSample)
    return read_sample(image_entry.source)


def mean(values: Sequence[float]) -> float:
    """Their mean, 0 when there are none: JSON has no NaN."""
    return float(sum(values) / len(values)) if len(values) else 0.0
