"""Load test: many simulated annotators at one server.

    python tests/benchmarks/annotators.py [NUM_ANNOTATORS [SECONDS]]

prints one line of JSON with latencies, errors, and the number of images that were assigned to two annotators. The server runs the
smallest model in its own process. An annotator clicks at most twice, draws the rest, and waits between masks for the time of the
simulated work multiplied by TIME_SCALE, so the load is that of annotators who are ten times as fast as humans. Latencies are
measured by the clients on the same machine, so they include the load of the clients.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import make_sample
from server_fixtures import run_server, write_nano_checkpoint

from data_engine.annotation_tool.backend.client import AnnotationClient
from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.simulated_client import SimulatedClient
from data_engine.annotators import SimulatedAnnotator
from data_engine.sources import open_source
from sam_train.errors import SamTrainError
from sam_train.shards import write_shard

TIME_SCALE = 0.1
NUM_IMAGES = 4000
ROUTES = ("POST /api/next", "POST /api/tasks/*/done", "PUT /api/commits/*")


class LoadTest:
    """Runs the annotators and collects latencies, images and errors of all of them."""

    def __init__(self, corpus: Path, url: str, deadline: float) -> None:
        self.ground_truth, self.url, self.deadline = open_source(corpus), url, deadline
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.images: Counter[str] = Counter()
        self.errors: list[str] = []
        self.masks: list[int] = []

    def add_latency(self, route: str, seconds: float) -> None:
        self.seconds[route].append(seconds)

    def annotate(self, token: str) -> None:
        """Run one annotator until the deadline."""
        time.sleep(3 * random.random())  # noqa: S311
        try:
            with AnnotationClient(
                self.url, token, on_request=lambda route, seconds: self.seconds[route].append(seconds)
            ) as client:
                simulated = SimulatedClient(client, SimulatedAnnotator(max_clicks=2), self.ground_truth, time_scale=TIME_SCALE)
                try:
                    while time.monotonic() < self.deadline:
                        self.masks.append(int(simulated.annotate_images(len(simulated.image_keys) + 1).get("masks", 0)))
                finally:
                    self.images.update(simulated.image_keys)
        except (SamTrainError, OSError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")


def measure(num_annotators: int, seconds: float) -> dict[str, Any]:
    """Run the load test once and return its results."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder / "corpus" / "sa_000000.tar", [make_sample(index) for index in range(NUM_IMAGES)])
        names = [f"a{number}" for number in range(num_annotators)]
        overrides = [f"corpus={folder / 'corpus'}", f"annotators=[{','.join(names)}]", "threads=1"]
        overrides.append(f"checkpoint={write_nano_checkpoint(folder / 'model.pt')}")
        with run_server(folder / "out", *overrides) as server:
            load = LoadTest(folder / "corpus", server.url, time.monotonic() + seconds)
            threads = [threading.Thread(target=load.annotate, args=(server.tokens[name],)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        store = Database(folder / "out" / "store.sqlite").connection
        leased = [row[0] for row in store.execute("SELECT count(*) FROM events WHERE kind = 'leased' GROUP BY task")]
        stored = store.execute("SELECT count(*) FROM masks").fetchone()[0]
    return {
        "annotators": num_annotators,
        "seconds": seconds,
        "errors": load.errors[:5],
        "num_errors": len(load.errors),
        "images": len(load.images),
        "images_assigned_twice": sum(number > 1 for number in load.images.values()) + sum(number > 1 for number in leased),
        "masks": sum(load.masks),
        "masks_in_store": stored,
        "requests": sum(map(len, load.seconds.values())),
        "milliseconds": {route: _percentiles(load.seconds[route]) for route in ROUTES},
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, [50, 99]) * 1000
    return {"p50": round(float(values[0]), 1), "p99": round(float(values[1]), 1), "calls": len(seconds)}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    print(json.dumps(measure(int(arguments[0]) if arguments else 50, float(arguments[1]) if arguments[1:] else 300.0)))
