"""One worker's share of a source, and how it becomes a shard.

job.py       what is sent to a worker, and what it tells
worker.py    a slice to a shard
overlap.py   reading ahead and finishing behind
claims.py    who works on which slice
listing.py   the source, cut into slices
folder.py    the run's folder on disk
"""

from data_engine.slices.job import Job, Outcome, ProgressListener, SliceProgress, SliceStatus, absolute
from data_engine.slices.listing import Listing
from data_engine.slices.run_folder import RunFolder
from data_engine.slices.worker import Worker

__all__ = ["Job", "Listing", "Outcome", "ProgressListener", "RunFolder", "SliceProgress", "SliceStatus", "Worker", "absolute"]
