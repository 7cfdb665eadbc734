"""Samples of shards by position in the endless order of `sampler.SampleOrder`.

The sample at a position, and its augmentation, is a pure function of (seed, position). A run that resumes at step s therefore
resumes at position s x images per step, on any number of devices and loader processes, without reading earlier samples again.
That number is the whole state. torchdata's StatefulDataLoader would store the state of each loader process, all of which
follows from it, and would tie a run to its number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from sam_train.data.record_parser import TargetRecord, parse_target_record
from sam_train.data.sampler import SampleOrder
from sam_train.data.sources import ShardSet
from sam_train.data.transforms import TrainingSample, Transform
from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards import Sample
from sam_train.shards.index import IndexedSample, read_sample, read_sample_bytes
from sam_train.text import TextEmbeddingStore

log = logging.getLogger(__name__)

_MAX_LOGGED_SKIPS = 20
"""Number of skipped samples that a process logs with their reason; all of them are counted in the metrics."""


_VALID_SAMPLES = ("no_mask", "masks_too_large", "masks_too_small", "no_text_prompt")
"""Reasons for which a sample is skipped although image and record are valid."""


class ShardDataset(Dataset[TrainingSample]):
    """Map-style dataset over shards, indexed by position in the endless order.

    keep_sources: fill `TrainingSample.source`, for a measurement at the resolution of the stored image.
    replace_unusable: return the next usable sample of the order in place of an unusable one, as training needs it. If False,
        return a sample without masks, because a measurement must not count the next sample twice.
    window: number of shards whose samples are mixed, see `SampleOrder`.
    text_store: adds one of its text embeddings to each mask, drawn at random; masks that have none are dropped.

    `TrainingSample.skipped` holds the reasons for which samples were skipped: `no_mask`, `masks_too_large`,
    `masks_too_small`, `undecodable_jpeg`, `wrong_size`, `too_large`, `no_text_prompt`, or `bad_FIELD` for a field that violates
    the schema.

    Indexing raises ShardError after `max_consecutive_skips` unusable samples in a row, or after a whole epoch of them.
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
        keep_sources: bool = False,
        max_consecutive_skips: int = 100,
        text_store: TextEmbeddingStore | None = None,
    ) -> None:
        sizes = [len(index) for index in shards.indexes]
        self.order = SampleOrder(sizes, weights=shards.weights, seed=seed, shuffle=shuffle, window=window)
        self.shards, self.transform, self.seed, self.text_store = shards, transform, seed, text_store
        self.replace_unusable, self.keep_sources = replace_unusable, keep_sources
        self.max_skips = min(max_consecutive_skips, len(self.order))
        self._consecutive_skips: dict[str, str] = {}
        """Reasons of the samples skipped since the last usable one; by key, because validation reads the same ones repeatedly."""
        self._logged: set[str] = set()

    def __len__(self) -> int:
        """Number of samples in an epoch. With weights it differs from the number of images."""
        return len(self.order)

    def __getitem__(self, position: int) -> TrainingSample:
        return self._next_usable(position) if self.replace_unusable else self._usable_or_empty(position)

    def entry(self, position: int) -> IndexedSample:
        """Return the index entry of the sample at a position, without reading the sample."""
        shard, index = self.order.locate(position)
        return self.shards.indexes[shard][index]

    def _next_usable(self, position: int) -> TrainingSample:
        skipped: list[str] = []
        while len(skipped) < self.max_skips:
            try:
                return self._load(self.entry(position + len(skipped)), position, tuple(skipped))
            except SkipSampleError as skip:
                self._log_skip(skip)
                skipped.append(skip.reason)
        raise _too_many_skips(skipped)

    def _usable_or_empty(self, position: int) -> TrainingSample:
        entry = self.entry(position)
        source = self._source(entry, position) if self.keep_sources else None
        try:
            sample = self._load(entry, position, ())
        except SkipSampleError as skip:
            self._log_skip(skip)
            self._consecutive_skips[f"{entry.shard}/{entry.key}"] = skip.reason
            if len(self._consecutive_skips) == self.max_skips:
                raise _too_many_skips([*self._consecutive_skips.values()]) from skip
            empty = TrainingSample.empty(entry.key, self.transform.image_size, skip.reason, names=self.transform.load_names)
            return replace(empty, source=source if skip.reason in _VALID_SAMPLES else None)
        self._consecutive_skips = {}
        return replace(sample, source=source)

    def _source(self, entry: IndexedSample, position: int) -> tuple[int, Sample] | None:
        try:
            return position % len(self) + 1, read_sample(entry, self.shards.open_shard)
        except ShardError:  # `_load` counts it
            return None

    def _load(self, entry: IndexedSample, position: int, skipped: tuple[str, ...]) -> TrainingSample:
        """Read and transform one sample. Raises SkipSampleError for anything that is wrong with it."""
        try:
            jpeg, document = read_sample_bytes(entry, self.shards.open_shard)
            record = parse_target_record(document, key=entry.key, shard=str(entry.shard), names=self.transform.load_names)
            if record.image_id != entry.image_id:
                message = f"the image id is {record.image_id}, and {entry.image_id} in the index: the shard has changed"
                raise ShardError(message, field="image.image_id")
            rng = np.random.default_rng([self.seed, position])
            record = record if self.text_store is None else self._with_text_embeddings(record, entry, position)
            return self.transform.from_jpeg(jpeg, record, rng, shard=str(entry.shard), skipped=skipped)
        except SkipSampleError:
            raise
        except ShardError as error:
            # The counter of `annotations[3].area` is `bad_area`: without the index of the mask.
            reason = f"bad_{error.field.rpartition('.')[2] or 'sample'}"
            location = {"shard": error.shard or str(entry.shard), "key": entry.key}
            raise SkipSampleError(reason, str(error), **({} if error.shard else location)) from error

    def _with_text_embeddings(self, record: TargetRecord, entry: IndexedSample, position: int) -> TargetRecord:
        """Keep the masks that have text embeddings, with one embedding each. Raises SkipSampleError if there is no such mask."""
        assert self.text_store is not None
        stored = self.text_store.load(entry.shard, entry.image_id)
        rows = {mask_id: row for row, mask_id in enumerate(stored.mask_ids.tolist())}
        indices = [index for index, mask_id in enumerate(record.mask_ids) if mask_id in rows]
        if not indices:
            raise SkipSampleError("no_text_prompt", shard=str(entry.shard), key=entry.key)
        num = stored.embeddings.shape[1]
        choices = np.random.default_rng([self.seed, position, 1]).integers(num, size=len(indices))
        if not self.replace_unusable:  # a measurement takes the first embedding, not a random one
            choices = np.zeros(len(indices), int)
        return record.select_masks(indices, stored.embeddings[[rows[record.mask_ids[index]] for index in indices], choices])

    def _log_skip(self, skip: SkipSampleError) -> None:
        if len(self._logged) < _MAX_LOGGED_SKIPS and str(skip) not in self._logged:
            self._logged.add(str(skip))
            suffix = "; further skipped samples are only counted" if len(self._logged) == _MAX_LOGGED_SKIPS else ""
            reason = "" if str(skip).startswith(skip.reason) else f"{skip.reason}: "
            log.warning("skipped a sample, %s%s%s", reason, skip, suffix)


def _too_many_skips(skipped: Sequence[str]) -> ShardError:
    """Return the error for consecutive unusable samples, given the reason of each."""
    counts = ", ".join(f"{reason} {skipped.count(reason)} x" for reason in sorted(set(skipped)))
    return ShardError(f"{len(skipped)} samples in a row are unusable ({counts}): check the shards and the filters of data.*")
