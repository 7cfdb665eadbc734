"""Run a stage of the data engine with a simulated annotator on the embedded corpus, and read the shards that it writes.

    python examples/simulated_annotation.py --out runs/mine

The annotator clicks on the ground truth of composed scenes. With --checkpoint the model helps; without it every mask is drawn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sam_train.shards import expand_shards, iterate_samples


def main() -> None:
    """Compose scenes, annotate them, count what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/simulated_annotation"))
    parser.add_argument("--num-images", type=int, default=6)
    parser.add_argument("--checkpoint", help="model that helps the annotator, for example mobile_sam.pth")
    arguments = parser.parse_args()
    corpus, shards = arguments.out / "corpus", arguments.out / "shards"

    compose = [sys.executable, "-m", "sam_train.data.synthetic", "--out", str(corpus), "--num-images", str(arguments.num_images)]
    subprocess.run([*compose, "--longest-side", "128"], check=True)
    engine = [str(Path(sys.executable).with_name("sam-engine")), "stage=assisted_manual", f"source={corpus}", f"out={shards}"]
    options = ["privacy=none", "report=false"] + ([f"checkpoint={arguments.checkpoint}"] if arguments.checkpoint else [])
    subprocess.run([*engine, *options], check=True)

    origins: Counter[str] = Counter()
    seconds = 0.0
    for sample in iterate_samples(expand_shards(str(shards))):
        for mask in sample.record.masks:
            origins[mask.provenance.annotator] += 1
            seconds += mask.provenance.seconds
    print(f"{sum(origins.values())} masks by {dict(origins)}, {seconds / max(1, sum(origins.values())):.1f} seconds per mask")


if __name__ == "__main__":
    main()
