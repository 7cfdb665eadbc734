"""What shards need after they were made: `sam-data validate | repair | stats | card | dedupe | split`.

salvage.py      a tar to its members, past damage: what the strict readers of `sam_train.shards` refuse
segments.py     an RLE to its area, box, centre and hull without its pixels
check.py        what is wrong with one sample
mend.py         a broken sample to what can be kept of it
near.py  prints.py       perceptual hashes, and the pairs that are close
validate.py  repair.py  dedupe.py  split.py  statistics/  card/      a command each
"""
