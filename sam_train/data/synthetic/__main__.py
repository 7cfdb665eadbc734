"""`python -m sam_train.data.synthetic --out FOLDER`: write a synthetic corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from sam_train.data.synthetic.corpus import write_corpus
from sam_train.errors import exit_with_message


@exit_with_message
def main() -> None:
    """Parse the command line and write the corpus, with a progress bar."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_train.data.synthetic", description="Write a synthetic corpus as shards; those that are done stay."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards, made when absent")
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other images, keys and ids")
    parser.add_argument("--longest-side", type=int, default=320, help="of every image, in pixels")
    parser.add_argument("--images-per-shard", type=int, default=20)
    parser.add_argument("--true-colours", action="store_true", help="of what objects are cut from: their names show")
    given = parser.parse_args()
    write_corpus(
        given.out,
        num_images=given.num_images,
        seed=given.seed,
        height=given.longest_side,
        width=given.longest_side,
        images_per_shard=given.images_per_shard,
        true_colours=given.true_colours,
        progress=True,
    )


if __name__ == "__main__":
    main()
