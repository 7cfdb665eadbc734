"""One worker's share of a source, and how it becomes a shard.

job.py       what is sent to a worker, and what it tells
worker.py    a slice to a shard
overlap.py   reading ahead and finishing behind
claims.py    who works on which slice
listing.py   the source, cut into slices
folder.py    the run's folder on disk
"""

from data_engine.slices.job import EngineJob, ProgressListener, SliceProgress, SliceResult, SliceStatus, with_absolute_paths
from data_engine.slices.listing import SliceListing
from data_engine.slices.run_folder import EngineRunFolder
from data_engine.slices.worker import Worker

__all__ = [
    "EngineJob",
    "EngineRunFolder",
    "ProgressListener",
    "SliceListing",
    "SliceProgress",
    "SliceResult",
    "SliceStatus",
    "Worker",
    "with_absolute_paths",
]
