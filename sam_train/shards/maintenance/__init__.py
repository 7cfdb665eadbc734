"""Maintenance of finished shards: `sam-data validate | repair | stats | card | dedupe | split | table`.

tar_recovery.py      reads the members of a damaged tar, which the strict readers of `sam_train.shards` reject
rle_geometry.py      area, box, centre and convex hull of an RLE without its pixels
sample_checks.py     checks one sample
repair_sample.py     repairs one sample
perceptual_hash.py, duplicate_groups.py   perceptual hashes of images, and pairs whose hashes are close
validate.py, repair.py, dedupe.py, split.py, merge_tables.py, statistics/, dataset_card/   one command each
"""

__all__: list[str] = []  # one module per command, imported when it is given
