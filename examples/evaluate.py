"""Measure the mean IoU of a checkpoint after 1, 3 and 5 simulated clicks on shards.

python examples/evaluate.py --checkpoint runs/quickstart/model.pt --shards runs/quickstart/corpus/heldout
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sam_train import load_predictor
from sam_train.evaluation.clicks import ClickProtocol
from sam_train.shards import expand_shards, iterate_samples


def main() -> None:
    """Run the protocol and print its metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--shards", required=True, help="a folder, a glob or a brace range of .tar files")
    parser.add_argument("--masks-per-image", type=int, default=8)
    arguments = parser.parse_args()
    protocol = ClickProtocol(num_clicks=5, masks_per_image=arguments.masks_per_image)
    result = protocol.run(load_predictor(arguments.checkpoint), iterate_samples(expand_shards(arguments.shards)))
    for name, value in result.means().items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
