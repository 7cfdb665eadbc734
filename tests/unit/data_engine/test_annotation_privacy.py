"""sam-annotate with a privacy filter: faces are covered on the page, for the model and in exported shards."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from server_fixtures import write_nano_checkpoint
from starlette.testclient import TestClient

from data_engine import annotate
from data_engine.privacy import CenterFace, read_audit
from sam_train.cli.commands import data as sam_data
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.rle import encode_rle
from sam_train.shards import decode_jpeg, iterate_samples, load_manifest

FACE = (182, 58, 270, 178)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one image of a person and one of a cat."""
    data = pytest.importorskip("skimage.data")
    try:
        CenterFace()
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("image_folder")
    for name in ("astronaut", "chelsea"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
    return folder


@pytest.fixture
def config(image_folder: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            base = [f"corpus={image_folder}", f"out={tmp_path / 'out'}", "annotators=[ann]", "threads=1"]
            return compose("annotate", overrides=[*base, *overrides])

    return compose_config


class AnnotatorClient:
    """HTTP client of an annotator."""

    def __init__(self, config: DictConfig) -> None:
        app, self.context, links = annotate.create_application(config)
        token = links["ann"].rpartition("#")[2]
        self.http = TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {token}"})

    def next(self) -> dict[str, Any] | None:
        task: dict[str, Any] | None = self.http.post("/api/next").raise_for_status().json()["task"]
        return task

    def finish(self, task: dict[str, Any]) -> None:
        mask = np.zeros((task["height"], task["width"]), bool)
        mask[10:40, 10:60] = True
        body = {"task": task["id"], "mask": str(uuid.uuid4()), "kind": "put", "rle": encode_rle(mask), "origin": "drawn"}
        self.http.put(f"/api/commits/{uuid.uuid4()}", json=body).raise_for_status()
        self.http.post(f"/api/tasks/{task['id']}/done").raise_for_status()

    def image(self, task: dict[str, Any]) -> bytes:
        return self.http.get(f"/api/tasks/{task['id']}/image").raise_for_status().content


def pixel_changes(image_folder: Path, jpeg: bytes, name: str = "astronaut") -> np.ndarray:
    before = np.asarray(Image.open(image_folder / f"{name}.jpg")).astype(int)
    return np.abs(decode_jpeg(jpeg).astype(int) - before)


def test_covers_faces_on_the_page_for_the_model_and_in_the_shard(
    config: Callable[..., DictConfig], image_folder: Path, tmp_path: Path
) -> None:
    cfg = config(f"checkpoint={write_nano_checkpoint(tmp_path / 'model.pt')}", "num_prefetch=0")
    ann = AnnotatorClient(cfg)
    shown = {}
    while task := ann.next():
        shown[task["image"]] = ann.image(task)
        ann.finish(task)
    assert set(shown) == {"astronaut", "chelsea"}
    left, top, right, bottom = FACE
    assert pixel_changes(image_folder, shown["astronaut"])[top:bottom, left:right].mean() > 20
    assert pixel_changes(image_folder, shown["astronaut"])[300:, 300:].mean() < 3
    assert not pixel_changes(image_folder, shown["chelsea"], "chelsea").any(), "an image without faces is not changed"
    assert np.array_equal(ann.context.images.pixels("astronaut"), decode_jpeg(shown["astronaut"])), (
        "the model gets the covered image"
    )
    assert ann.context.embedding_service is not None
    ann.context.embedding_service.close()
    annotate.export_shards(cfg)
    shard = tmp_path / "out" / "shards" / "sa_web_000000.tar"
    assert {s.record.key: s.jpeg for s in iterate_samples([shard])} == shown
    assert {key for key, _ in read_audit(shard)} == {"astronaut"}
    assert load_manifest(shard).counts["privacy/faces"] >= 1
    assert (shard.parent / "privacy" / "review.html").is_file()


def test_rejects_another_privacy_filter_for_an_existing_store(
    config: Callable[..., DictConfig], image_folder: Path, tmp_path: Path
) -> None:
    ann = AnnotatorClient(config())
    task = ann.next()
    assert task is not None
    ann.finish(task)
    for start in (annotate.create_application, annotate.export_shards):
        with pytest.raises(ConfigError, match=r"were shown with privacy [0-9a-f]{12}, this is none"):
            start(config("privacy=none"))
    (tmp_path / "out" / "privacy.json").unlink()
    with pytest.raises(ConfigError, match="were shown with privacy none"):
        annotate.export_shards(config())
    (tmp_path / "out" / "privacy.json").write_text("{")
    with pytest.raises(ConfigError, match="does not state the privacy"):
        annotate.export_shards(config())
    assert not list((tmp_path / "out").glob("shards/*"))


def test_image_taken_down_is_neither_shown_nor_exported(
    config: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "out.txt"
    listed.write_text("# nothing yet\n")
    overrides = ["privacy=none", f"privacy.take_down={listed}"]
    ann = AnnotatorClient(config(*overrides))
    task = ann.next()
    assert task is not None
    assert task["image"] == "astronaut"
    ann.finish(task)
    listed.write_text("chelsea\n")
    ann = AnnotatorClient(config(*overrides))
    assert ann.next() is None
    (reason,) = ann.context.queue.database.connection.execute("SELECT reason FROM tasks WHERE image = 'chelsea'").fetchone()
    assert reason.startswith("taken down")
    listed.write_text("astronaut\n")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    annotate.export_shards(config(*overrides))
    manifest = load_manifest(tmp_path / "out" / "shards" / "sa_web_000000.tar")
    assert (manifest.keys, manifest.skipped) == ([], {"astronaut.jpg": "taken_down"})
    listed.write_text("")  # a shard that was exported before the request
    annotate.export_shards(config(*overrides, f"out={tmp_path / 'copy'}"))
    listed.write_text("astronaut\n")
    capsys.readouterr()
    annotate.export_shards(config(*overrides, f"out={tmp_path / 'copy'}"))
    assert "1 images of" in capsys.readouterr().out


def test_repair_keeps_the_redaction_audit(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The audit of the repaired shards lists the remaining images."""
    ann = AnnotatorClient(config())
    while task := ann.next():
        ann.finish(task)
    annotate.export_shards(config())
    shards, listed = tmp_path / "out" / "shards", tmp_path / "list.txt"
    listed.write_text("chelsea\n")
    sam_data(["repair", str(shards), "--drop-ids", str(listed), "--out", str(tmp_path / "kept")])
    before, after = (folder / "privacy" / "sa_web_000000.jsonl" for folder in (shards, tmp_path / "kept"))
    assert after.read_bytes() == before.read_bytes()
    assert json.loads(after.read_text().splitlines()[0])["key"] == "astronaut"
    listed.write_text("astronaut\n")
    sam_data(["repair", str(shards), "--drop-ids", str(listed), "--out", str(tmp_path / "without")])
    assert (tmp_path / "without" / "privacy" / "sa_web_000000.jsonl").read_bytes() == b""
