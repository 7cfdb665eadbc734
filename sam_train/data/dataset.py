"""Samples of shards by position in the endless order of `order.SampleOrder`.

What comes at a position, and how it is augmented, is a pure function of (seed, position). A run that goes on at step s
therefore goes on at position s x images per step, on any number of devices and loader processes, without reading again what
came before. That number is all the state there is: torchdata's StatefulDataLoader would keep, for each loader process, what
follows from it, and bind a run to its number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from sam_train.data.record_parser import TargetRecord, parse_target_record
from sam_train.data.sampler import SampleOrder
from sam_train.data.sources import ShardSet
from sam_train.data.transforms import TrainingSample, Transform
from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards.index import IndexedSample, read_sample_bytes
from sam_train.text import TextEmbeddingStore

log = logging.getLogger(__name__)

_TOLD = 20
"""Samples of which a process says that it passed them over, and why; the count goes on in the metrics."""


class ShardDataset(Dataset[TrainingSample]):
    """Map-style set over shards; an item is asked for by its position in the endless order.

    replace_unusable: a sample that cannot be used gives its place to the next of the order, as training wants it. Else its
        place stays empty, a sample without masks: what measures must not count its neighbour twice.
    window: shards whose samples are mixed, see SampleOrder.
    texts: masks come with an embedding of their words, drawn from those that the table has; masks without words stay behind.

    Why samples were passed over is kept in `TrainingSample.skipped`: `no_mask`, `no_mask_left`, `undecodable_jpeg`,
    `wrong_size`, `too_large`, `no_words`, or `bad_FIELD` for what the schema refuses. Raises ShardError after
    `max_consecutive_skips` unusable samples in a row, or as many as there are.
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        *,
        seed: int,
        shuffle: bool,
        window: int = 16,
        replace_unusable: bool = True,
        max_consecutive_skips: int = 100,
        text_store: TextEmbeddingStore | None = None,
    ) -> None:
        sizes = [len(index) for index in shards.indexes]
        self.order = SampleOrder(sizes, weights=shards.weights, seed=seed, shuffle=shuffle, window=window)
        self.shards, self.transform, self.seed, self.text_store = shards, transform, seed, text_store
        self.replace_unusable = replace_unusable
        self.max_skips = min(max_consecutive_skips, len(self.order))
        self._left_empty: dict[str, str] = {}
        """Samples without masks since the last that had some, and why; by key, because validation comes again and again."""
        self._told: set[str] = set()

    def __len__(self) -> int:
        """Samples in an epoch: with weights, other than there are."""
        return len(self.order)

    def __getitem__(self, position: int) -> TrainingSample:
        return self._usable(position) if self.replace_unusable else self._as_it_is(position)

    def entry(self, position: int) -> IndexedSample:
        """Which sample lies at a position, not read yet."""
        shard, place = self.order.locate(position)
        return self.shards.indexes[shard][place]

    def _usable(self, position: int) -> TrainingSample:
        skipped: list[str] = []
        while len(skipped) < self.max_skips:
            try:
                return self._load(self.entry(position + len(skipped)), position, tuple(skipped))
            except SkipSampleError as skip:
                self._tell(skip)
                skipped.append(skip.reason)
        raise too_many(skipped)

    def _as_it_is(self, position: int) -> TrainingSample:
        entry = self.entry(position)
        try:
            sample = self._load(entry, position, ())
        except SkipSampleError as skip:
            self._tell(skip)
            self._left_empty[f"{entry.shard}/{entry.key}"] = skip.reason
            if len(self._left_empty) == self.max_skips:
                raise too_many([*self._left_empty.values()]) from skip
            return TrainingSample.empty(entry.key, self.transform.image_size, skip.reason, names=self.transform.load_names)
        self._left_empty = {}
        return sample

    def _load(self, entry: IndexedSample, position: int, skipped: tuple[str, ...]) -> TrainingSample:
        """Raises SkipSampleError for whatever is wrong with this one sample."""
        try:
            jpeg, document = read_sample_bytes(entry, self.shards.open_shard)
            record = parse_target_record(document, key=entry.key, shard=str(entry.shard), names=self.transform.load_names)
            if record.image_id != entry.image_id:
                message = f"image id {record.image_id} where the index has {entry.image_id}: the shard changed since"
                raise ShardError(message, field="image.image_id")
            rng = np.random.default_rng([self.seed, position])
            record = record if self.text_store is None else self._with_words(record, entry, position)
            return self.transform.from_jpeg(jpeg, record, rng, shard=str(entry.shard), skipped=skipped)
        except SkipSampleError:
            raise
        except ShardError as error:
            # `annotations[3].area` is a place; what is counted is the kind of thing that stands there.
            reason = f"bad_{error.field.rpartition('.')[2] or 'sample'}"
            place = {"shard": error.shard or str(entry.shard), "key": entry.key}
            raise SkipSampleError(reason, str(error), **({} if error.shard else place)) from error

    def _with_words(self, record: TargetRecord, entry: IndexedSample, position: int) -> TargetRecord:
        """Those masks that have words, with one embedding each. Raises SkipSampleError when there are none."""
        assert self.text_store is not None
        found = self.text_store.load(entry.shard, entry.image_id)
        rows = {mask_id: row for row, mask_id in enumerate(found.mask_ids.tolist())}
        places = [place for place, mask_id in enumerate(record.mask_ids) if mask_id in rows]
        if not places:
            raise SkipSampleError("no_words", shard=str(entry.shard), key=entry.key)
        num = found.embeddings.shape[1]
        drawn = np.random.default_rng([self.seed, position, 1]).integers(num, size=len(places))
        if not self.replace_unusable:  # what is measured must not be drawn
            drawn = np.zeros(len(places), int)
        return record.select_masks(places, found.embeddings[[rows[record.mask_ids[place]] for place in places], drawn])

    def _tell(self, skip: SkipSampleError) -> None:
        if len(self._told) < _TOLD and str(skip) not in self._told:
            self._told.add(str(skip))
            more = "; of further ones only the number is kept" if len(self._told) == _TOLD else ""
            log.warning("passed over, %s: %s%s", skip.reason, skip, more)


def too_many(skipped: Sequence[str]) -> ShardError:
    """What to raise after so many unusable samples in a row, given why."""
    counted = ", ".join(f"{reason} {skipped.count(reason)} x" for reason in sorted(set(skipped)))
    return ShardError(f"{len(skipped)} samples in a row cannot be used ({counted}): the data or the filters are wrong")
