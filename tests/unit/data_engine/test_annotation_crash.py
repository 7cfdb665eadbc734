"""A server that is killed during commits loses no confirmed commit and applies repeated ones once. Simulated annotators never
have the same image, and their masks are exported as a shard."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_mask, make_sample
from hydra import compose, initialize_config_dir
from server_fixtures import run_server, write_nano_checkpoint

from data_engine import annotate
from data_engine.annotation_tool.backend.client import AnnotationClient
from data_engine.annotation_tool.backend.database import Database
from data_engine.annotation_tool.backend.mask_store import AnnotatedMask
from data_engine.annotation_tool.backend.simulated_client import SimulatedClient
from data_engine.annotators import SimulatedAnnotator
from data_engine.sources import open_source
from sam_train.config import config_dir
from sam_train.rle import encode_rle
from sam_train.shards import iterate_samples, write_shard

HEIGHT, WIDTH = 48, 64
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(NUM_IMAGES)])
    return folder


def drawn_mask(seconds: float) -> AnnotatedMask:
    mask = make_mask(HEIGHT, WIDTH, 0)
    mask[0, int(seconds) % WIDTH] = True
    return AnnotatedMask(rle=encode_rle(mask), origin="drawn", strokes=1, seconds=seconds, wall_seconds=seconds)


@pytest.mark.slow
def test_killed_server_loses_no_confirmed_commit(corpus: Path, tmp_path: Path) -> None:
    """Send unconfirmed commits again, as the page does, together with the last 20 confirmed ones."""
    overrides = [f"corpus={corpus}", "annotators=[ann]"]
    commits = [(str(uuid.uuid4()), str(uuid.uuid4()), drawn_mask(float(n))) for n in range(200)]
    num_confirmed = 0
    for kill_after_s in (0.3, 0.5, None):
        with (
            run_server(tmp_path / "out", *overrides) as server,
            AnnotationClient(server.url, server.tokens["ann"], max_attempts=1) as client,
        ):
            task = client.next_task()
            assert task is not None
            assert len(task["masks"]) in (num_confirmed, num_confirmed + 1), "the confirmed ones, and possibly the one in flight"
            if kill_after_s is not None:
                threading.Timer(kill_after_s, server.kill).start()
            try:
                for commit, mask, made in commits[max(0, num_confirmed - 20) :]:
                    client.put_mask(task["id"], made, mask=mask, commit=commit)
                    num_confirmed = max(num_confirmed, commits.index((commit, mask, made)) + 1)
            except ConnectionError:
                assert kill_after_s is not None
            else:
                assert kill_after_s is None, "the server was killed after the last commit"
    rows = (
        Database(tmp_path / "out" / "store.sqlite")
        .connection.execute("SELECT id, seconds, revisions, counts FROM masks")
        .fetchall()
    )
    assert {row["id"]: row["counts"] for row in rows} == {mask: made.rle["counts"] for _, mask, made in commits}
    assert {row["id"]: row["seconds"] for row in rows} == {mask: made.seconds for _, mask, made in commits}, (
        "each commit counts once"
    )
    assert {row["revisions"] for row in rows} == {1}


def test_simulated_annotators_share_a_queue(corpus: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ["ann", "bob", "eve"]
    checkpoint = write_nano_checkpoint(tmp_path / "model.pt")
    overrides = [f"corpus={corpus}", f"annotators=[{','.join(names)}]", f"checkpoint={checkpoint}", "threads=1"]
    image_keys: dict[str, list[str]] = {}
    failures: list[BaseException] = []

    def annotate_all(name: str, url: str, token: str) -> None:
        try:
            with AnnotationClient(url, token) as client:
                simulated = SimulatedClient(client, SimulatedAnnotator(max_clicks=2), open_source(corpus))
                simulated.annotate_images()
            image_keys[name] = simulated.image_keys
        except BaseException as error:  # reported by the main thread
            failures.append(error)

    with run_server(out, *overrides) as server:
        threads = [threading.Thread(target=annotate_all, args=(name, server.url, server.tokens[name])) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    images = Counter(image for keys in image_keys.values() for image in keys)
    assert images == {f"sa_{index:06d}": 1 for index in range(NUM_IMAGES)}, "each image once"
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        annotate.export_shards(compose("annotate", overrides=["action=export", "privacy=none", f"out={out}", *overrides]))
    samples = list(iterate_samples([out / "shards" / "sa_web_000000.tar"]))
    assert len(samples) == NUM_IMAGES
    for sample in samples:
        assert len(sample.record.masks) == 2
        annotators = {mask.provenance.annotator for mask in sample.record.masks if mask.provenance}
        assert annotators == {name for name, keys in image_keys.items() if sample.record.key in keys}
        # No prediction of random weights is accepted: each mask is drawn after two clicks and equals the ground truth.
        ground_truth = [encode_rle(make_mask(HEIGHT, WIDTH, index)) for index in range(2)]
        exported = [mask.segmentation for mask in sample.record.masks]
        assert sorted(exported, key=str) == sorted(ground_truth, key=str)
        assert np.allclose([mask.provenance.seconds for mask in sample.record.masks if mask.provenance], 2 + 2 * 1.5 + 34)
