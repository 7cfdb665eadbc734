"""What shards need after they were made: `sam-data validate | repair | stats | dedupe | split`.

salvage.py      a tar to its members, past damage: what the strict readers of `sam_train.shards` refuse
segments.py     an RLE to its area, box, centre and hull without its pixels
check.py        what is wrong with one sample
validate.py  repair.py  near.py (hashes and pairs)  dedupe.py  split.py  statistics/      a command each
"""
