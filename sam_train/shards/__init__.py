"""SA-1B style webdataset tars: reading and writing.

folder/
  sa_000000.tar             key.jpg, key.json, key.jpg, ... adjacent and in order; equal input gives equal bytes
  sa_000000.masks.parquet   one row per mask: ids, area, box, scores, provenance
  sa_000000.manifest.json   checksum, byte offsets of the samples, provenance; written last: a shard without it is not complete
"""

from sam_train.shards.jpeg import decode_jpeg, encode_jpeg
from sam_train.shards.manifest import Manifest, done_shards, load_manifest, manifest_path
from sam_train.shards.reader import expand_shards, iterate_samples
from sam_train.shards.tar_members import Sample
from sam_train.shards.writer import write_shard

__all__ = [
    "Manifest",
    "Sample",
    "decode_jpeg",
    "done_shards",
    "encode_jpeg",
    "expand_shards",
    "iterate_samples",
    "load_manifest",
    "manifest_path",
    "write_shard",
]
