"""A server that is killed in the middle of commits loses nothing that it answered and doubles nothing that was sent again;
simulated annotators at its API never have an image at the same time, and their masks come out as a shard."""

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
from sam_train.masks import encode_rle
from sam_train.shards import iterate_samples, write_shard

HEIGHT, WIDTH = 48, 64
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "sa_000000.tar", [make_sample(index) for index in range(NUM_IMAGES)])
    return folder


def work(seconds: float) -> AnnotatedMask:
    mask = make_mask(HEIGHT, WIDTH, 0)
    mask[0, int(seconds) % WIDTH] = True
    return AnnotatedMask(rle=encode_rle(mask), origin="drawn", strokes=1, seconds=seconds, wall_seconds=seconds)


@pytest.mark.slow
def test_killed_in_a_commit(corpus: Path, tmp_path: Path) -> None:
    """The letters that got no answer go out again, as the page sends them, with all that were answered last."""
    overrides = [f"corpus={corpus}", "annotators=[ann]"]
    letters = [(str(uuid.uuid4()), str(uuid.uuid4()), work(float(n))) for n in range(200)]
    answered = 0
    for kill_after_s in (0.3, 0.5, None):
        with (
            run_server(tmp_path / "out", *overrides) as server,
            AnnotationClient(server.url, server.tokens["ann"], max_attempts=1) as client,
        ):
            found = client.next_task()
            assert found is not None
            assert len(found["masks"]) in (answered, answered + 1), "what was answered, and perhaps the one on its way"
            if kill_after_s is not None:
                threading.Timer(kill_after_s, server.kill).start()
            try:
                for commit, mask, made in letters[max(0, answered - 20) :]:
                    client.put_mask(found["id"], made, mask=mask, commit=commit)
                    answered = max(answered, letters.index((commit, mask, made)) + 1)
            except ConnectionError:
                assert kill_after_s is not None
            else:
                assert kill_after_s is None, "it was killed too late to be in the middle"
    rows = (
        Database(tmp_path / "out" / "store.sqlite")
        .connection.execute("SELECT id, seconds, revisions, counts FROM masks")
        .fetchall()
    )
    assert {row["id"]: row["counts"] for row in rows} == {mask: made.rle["counts"] for _, mask, made in letters}
    assert {row["id"]: row["seconds"] for row in rows} == {mask: made.seconds for _, mask, made in letters}, "once each"
    assert {row["revisions"] for row in rows} == {1}


def test_three_simulated_annotators_at_once(corpus: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ["ann", "bob", "eve"]
    checkpoint = write_nano_checkpoint(tmp_path / "model.pt")
    overrides = [f"corpus={corpus}", f"annotators=[{','.join(names)}]", f"checkpoint={checkpoint}", "threads=1"]
    seen: dict[str, list[str]] = {}
    failures: list[BaseException] = []

    def rehearse(name: str, url: str, token: str) -> None:
        try:
            with AnnotationClient(url, token) as client:
                simulated = SimulatedClient(client, SimulatedAnnotator(max_clicks=2), open_source(corpus))
                simulated.annotate_images()
            seen[name] = simulated.image_keys
        except BaseException as error:  # told below, by the test's own thread
            failures.append(error)

    with run_server(out, *overrides) as server:
        threads = [threading.Thread(target=rehearse, args=(name, server.url, server.tokens[name])) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    images = Counter(image for found in seen.values() for image in found)
    assert images == {f"sa_{index:06d}": 1 for index in range(NUM_IMAGES)}, "each once, by whomever"
    with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
        annotate.export_shards(compose("annotate", overrides=["action=export", "privacy=none", f"out={out}", *overrides]))
    samples = list(iterate_samples([out / "shards" / "sa_web_000000.tar"]))
    assert len(samples) == NUM_IMAGES
    for sample in samples:
        assert len(sample.record.masks) == 2
        who = {mask.provenance.annotator for mask in sample.record.masks if mask.provenance}
        assert who == {name for name, found in seen.items() if sample.record.key in found}
        # Random weights answer nothing that is accepted: drawn after two clicks, so the mask is the truth's.
        ground_truth = [encode_rle(make_mask(HEIGHT, WIDTH, index)) for index in range(2)]
        found = [mask.segmentation for mask in sample.record.masks]
        assert sorted(found, key=str) == sorted(ground_truth, key=str)
        assert np.allclose([mask.provenance.seconds for mask in sample.record.masks if mask.provenance], 2 + 2 * 1.5 + 34)
