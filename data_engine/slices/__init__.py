"""A slice is a fixed part of a source's images; a worker annotates it and writes it as one shard.

job.py             what a worker receives and reports
worker.py          annotation of a slice, and its shard
prefetch.py        image prefetching and background finishing
slice_listing.py   the source's images, divided into slices
run_folder.py      the run folder on disk
"""

from data_engine.slices.job import EngineJob, ProgressListener, SliceProgress, SliceResult, SliceStatus, with_absolute_paths
from data_engine.slices.run_folder import EngineRunFolder
from data_engine.slices.slice_listing import SliceListing
from data_engine.slices.worker import Worker, existing_result

__all__ = [
    "EngineJob",
    "EngineRunFolder",
    "ProgressListener",
    "SliceListing",
    "SliceProgress",
    "SliceResult",
    "SliceStatus",
    "Worker",
    "existing_result",
    "with_absolute_paths",
]
