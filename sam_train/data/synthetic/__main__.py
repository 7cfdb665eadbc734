"""Command `python -m sam_train.data.synthetic --out FOLDER`, which writes a synthetic corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from sam_train.data.synthetic.corpus import write_corpus
from sam_train.data.synthetic.materials import MATERIALS
from sam_train.errors import exit_with_message


@exit_with_message
def main() -> None:
    """Parse the command line and write the corpus, with a progress bar."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_train.data.synthetic", description="Write a synthetic corpus as shards; finished shards are kept."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards, created if missing")
    parser.add_argument("--num-images", type=int, default=200, help="number of images of the corpus")
    parser.add_argument("--seed", type=int, default=0, help="different seeds give different images, keys and ids")
    parser.add_argument("--longest-side", type=int, default=320, help="longest side of each image in pixels")
    parser.add_argument("--images-per-shard", type=int, default=20, help="number of images in a shard")
    parser.add_argument(
        "--true-colours",
        action="store_true",
        help="keep the photographs' colours, so that objects are recognisable",
    )
    parser.add_argument("--material", choices=list(MATERIALS), default="photographs", help="what the scenes are made of")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    arguments = parser.parse_args()
    write_corpus(
        arguments.out,
        num_images=arguments.num_images,
        seed=arguments.seed,
        height=arguments.longest_side,
        width=arguments.longest_side,
        images_per_shard=arguments.images_per_shard,
        true_colours=arguments.true_colours,
        material=arguments.material,
        workers=arguments.workers,
        progress=True,
    )


if __name__ == "__main__":
    main()
