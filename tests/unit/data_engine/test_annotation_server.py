"""The annotation server over HTTP: permissions, rejected input (4xx, nothing is written), idempotent commits, consistent
checkpoints of embeddings and decoder, and export of finished images with their provenance."""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import make_mask, make_sample
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from server_fixtures import permissive_text_generator, write_nano_checkpoint, write_permissive_proposer
from starlette.testclient import TestClient
from tiny_clip import DIM

from data_engine import annotate
from data_engine.annotation_tool.backend.access import AccessTokens, load_or_create_tokens
from data_engine.annotation_tool.backend.app import STATIC
from data_engine.annotation_tool.backend.middleware import SECURITY_HEADERS
from data_engine.annotation_tool.backend.task_queue import SKIP_REASONS
from sam_train.config import config_dir
from sam_train.errors import ConfigError
from sam_train.rle import encode_rle
from sam_train.shards import iterate_samples, load_manifest, write_shard

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder / "sa_000000.tar", [make_sample(index, num_masks=2) for index in range(4)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_checkpoint(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            base = [
                f"corpus={corpus}",
                f"out={tmp_path / 'out'}",
                "annotators=[ann,bob]",
                "reviewers=[eve]",
                "threads=1",
                "privacy=none",
            ]
            return compose("annotate", overrides=[*base, *overrides])

    return compose_config


class ApiClient:
    """HTTP client of one application that sends requests as any of its users."""

    def __init__(self, config: DictConfig) -> None:
        self.app, self.context, self.links = annotate.create_application(config)
        self.http = TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)

    def __call__(self, name: str, method: str, path: str, body: object = None, status: int = 200) -> Any:
        token = self.links[name].rpartition("#")[2]
        answer = self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers["content-type"] else answer

    def next(self, name: str = "ann") -> dict[str, Any]:
        task: dict[str, Any] = self(name, "POST", "/api/next")["task"]
        return task

    def masks(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        return list(self("eve", "GET", f"/api/tasks/{task['id']}")["task"]["masks"])

    def close(self) -> None:
        if self.context.embedding_service is not None:
            self.context.embedding_service.close()


@pytest.fixture
def ask(config: Callable[..., DictConfig]) -> Iterator[ApiClient]:
    """Return a client of a server without a model."""
    client = ApiClient(config())
    yield client
    client.close()


@pytest.fixture
def ask_model(config: Callable[..., DictConfig], checkpoint: Path) -> Iterator[ApiClient]:
    client = ApiClient(config(f"checkpoint={checkpoint}"))
    yield client
    client.close()


def commit_body(task: dict[str, Any], index: int = 0, **changes: object) -> dict[str, Any]:
    body = {
        "task": task["id"], "mask": str(uuid.uuid4()), "kind": "put", "rle": encode_rle(make_mask(HEIGHT, WIDTH, index)),
        "origin": "drawn", "strokes": 2, "clicks": 1, "prompts": [[5.0, 5.0, 1]], "seconds": 4.0, "wall_seconds": 9.0,
    }  # fmt: skip
    return body | changes


def commit_url() -> str:
    return f"/api/commits/{uuid.uuid4()}"


def test_rejects_requests_without_a_valid_token(ask: ApiClient) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Cookie": "sam_annotate=wrong"}):
        answer = ask.http.post("/api/next", headers=headers)
        assert answer.status_code == 401
        assert "log in" in answer.json()["error"]
    assert ask.http.get("/").headers["location"] == "/login"
    assert ask.context.queue.count_by_state() == {"queued": 4}


def test_login_sets_an_http_only_cookie(ask: ApiClient) -> None:
    token = ask.links["ann"].rpartition("#")[2]
    assert ask.http.post("/login", data={"token": "wrong"}).headers["location"] == "/login?invalid"
    answer = ask.http.post("/login", data={"token": token})
    assert answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    assert ask.http.get("/api/session").json()["annotator"] == "ann"
    assert "main.js" in ask.http.get("/").text
    ask.http.post("/logout")
    assert ask.http.get("/api/session").status_code == 401


def test_every_response_has_the_security_headers(ask: ApiClient) -> None:
    for path in ("/login", "/static/main.js", "/api/session", "/nothing"):
        answer = ask.http.get(path)
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_rejects_another_host_header(ask: ApiClient) -> None:
    assert ask.http.get("/login", headers={"Host": "evil.example"}).status_code == 400


def test_page_and_modules_have_all_their_files(ask: ApiClient) -> None:
    """Every file that pages and modules refer to exists, and none comes from another site."""
    for module in STATIC.glob("*.js"):
        for name in re.findall(r"""(?:from|import|URL\()\s*"(\./[^"]+[a-z])\"""", module.read_text()):
            assert (STATIC / name).is_file(), f"{module.name} names {name}"
    for name in ("index.html", "login.html"):
        text = ask.http.get(f"/static/{name}").text
        named = [part.split('"')[0] for part in text.split('="/static/')[1:]]
        assert named
        assert {ask.http.get(f"/static/{file}").status_code for file in named} == {200}
        assert "//" not in text.replace("<!--", "").replace("http://www.w3.org", "")
    assert ask.http.get("/static/main.js").headers["content-type"].startswith("text/javascript")
    wasm = ask.http.get("/static/ort/ort-wasm-simd-threaded.wasm")
    assert wasm.headers["content-type"] == "application/wasm"
    assert wasm.content[:4] == b"\0asm"


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fbase.py", "/static//etc/passwd"]
)
def test_serves_no_files_outside_the_static_folder(ask: ApiClient, path: str) -> None:
    assert ask.http.get(f"/static{path}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/api/tasks/..%2f1", "/api/tasks/1%2f..%2f2/image", "/api/tasks/x/image", "/api/tasks/-1/image"]
)
def test_rejects_task_ids_that_are_not_numbers(ask: ApiClient, path: str) -> None:
    answer = ask.http.get(f"/api/tasks/{path}", headers={"Authorization": f"Bearer {ask.links['ann'].rpartition('#')[2]}"})
    assert answer.status_code in (404, 422)


def test_rejects_a_body_that_is_too_large(ask: ApiClient) -> None:
    headers = {"Authorization": f"Bearer {ask.links['ann'].rpartition('#')[2]}"}
    announced = ask.http.put(commit_url(), content=b"x", headers=headers | {"Content-Length": str(10**9)})
    streamed = ask.http.put(commit_url(), content=(bytes(1 << 20) for _ in range(20)), headers=headers)
    for answer in (announced, streamed):
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]


def test_commit_is_idempotent(ask: ApiClient) -> None:
    task = ask.next()
    body, address = commit_body(task), commit_url()
    assert ask("ann", "PUT", address, body)["new"] is True
    assert ask("ann", "PUT", address, body)["new"] is False
    (mask,) = ask.masks(task)
    assert (mask["seconds"], mask["strokes"], mask["area"]) == (4.0, 2, int(make_mask(HEIGHT, WIDTH, 0).sum()))
    assert "another content" in ask("ann", "PUT", address, body | {"seconds": 5.0}, status=409)["error"]
    ask("ann", "PUT", commit_url(), body | {"rle": encode_rle(make_mask(HEIGHT, WIDTH, 1))})
    (mask,) = ask.masks(task)
    assert mask["seconds"] == 8.0, "sum of both versions"
    assert mask["rle"] == encode_rle(make_mask(HEIGHT, WIDTH, 1))
    ask("ann", "PUT", commit_url(), {"task": task["id"], "mask": body["mask"], "kind": "delete"})
    assert ask.masks(task) == []


INVALID_COMMITS = {
    "an RLE of another size": {"rle": encode_rle(np.ones((WIDTH, HEIGHT), bool))},
    "runs with a wrong sum": {"rle": {"size": [HEIGHT, WIDTH], "counts": "0ooooo3"}},
    "truncated runs": {"rle": {"size": [HEIGHT, WIDTH], "counts": "oo"}},
    "invalid characters": {"rle": {"size": [HEIGHT, WIDTH], "counts": "é~"}},
    "a huge size": {"rle": {"size": [10**6, 10**6], "counts": "0"}},
    "an empty mask": {"rle": encode_rle(np.zeros((HEIGHT, WIDTH), bool))},
    "no mask": {"rle": None},
    "negative seconds": {"seconds": -1.0},
    "more work than time": {"seconds": 100.0},
    "wall time of years": {"seconds": 1.0, "wall_seconds": 1e9},
    "a prompt outside the image": {"prompts": [[1e6, 0.0, 1]]},
    "an invalid label": {"prompts": [[1.0, 1.0, 9]]},
    "another origin": {"origin": "proposed"},
    "accepting a mask that was not proposed": {"origin": "accepted"},
    "an unknown key": {"path": "../../x"},
    "a mask id that is a path": {"mask": "../../x"},
    "an invalid checkpoint": {"checkpoint": "../x"},
}


@pytest.mark.parametrize("changes", INVALID_COMMITS.values(), ids=INVALID_COMMITS.keys())
def test_invalid_commits_write_nothing(ask: ApiClient, changes: dict[str, object]) -> None:
    task = ask.next()
    assert ask("ann", "PUT", commit_url(), commit_body(task) | changes, status=422)["error"]
    assert ask.masks(task) == []
    assert list(ask.context.queue.database.connection.execute("SELECT * FROM commits")) == []


def test_rejects_nan_and_malformed_json(ask: ApiClient) -> None:
    task = ask.next()
    text = json.dumps(commit_body(task)).replace("4.0", "NaN")
    for content in (text, "{", '"x"', "[" * 100_000):
        token = ask.links["ann"].rpartition("#")[2]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = ask.http.put(commit_url(), content=content, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]
    assert ask.masks(task) == []


def test_rejects_access_to_tasks_of_other_annotators(ask: ApiClient) -> None:
    task = ask.next("ann")
    for path in ("", "/image"):
        assert "not yours" in ask("bob", "GET", f"/api/tasks/{task['id']}{path}", status=403)["error"]
    ask("bob", "PUT", commit_url(), commit_body(task), status=403)
    ask("bob", "POST", f"/api/tasks/{task['id']}/done", status=403)
    ask("bob", "POST", f"/api/tasks/{task['id']}/review", {"accept": True}, status=403)
    ask("bob", "POST", "/api/review/next", status=403)
    assert ask("eve", "GET", f"/api/tasks/{task['id']}")["task"]["image"] == task["image"]


def test_rejects_a_mask_of_another_task(ask: ApiClient) -> None:
    first, second = ask.next("ann"), ask.next("bob")
    body = commit_body(first)
    ask("ann", "PUT", commit_url(), body)
    assert "another task" in ask("bob", "PUT", commit_url(), body | {"task": second["id"]}, status=409)["error"]
    ask("bob", "PUT", commit_url(), {"task": second["id"], "mask": body["mask"], "kind": "delete"}, status=404)
    assert len(ask.masks(first)) == 1


def test_skips_an_image_that_cannot_be_decoded(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8 not an image")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "b.jpg")
    ask = ApiClient(config(f"corpus={folder}"))
    assert ask.next()["image"] == "b"
    (reason,) = ask.context.queue.database.connection.execute("SELECT reason FROM tasks WHERE image = 'a'").fetchone()
    assert reason.startswith("does not decode")


def test_rejects_another_checkpoint_and_decoders_agree(ask_model: ApiClient, checkpoint: Path, tmp_path: Path) -> None:
    """The ONNX decoder on the served embedding, as the page runs it, agrees with the server's decoder."""
    ask, task = ask_model, ask_model.next()
    model = ask("ann", "GET", "/api/session")["model"]
    for path in (f"/api/tasks/{task['id']}/embedding?checkpoint={'0' * 64}", f"/api/decoder/{'0' * 64}"):
        assert "reload the page" in ask("ann", "GET", path, status=409)["error"]
    body = {"checkpoint": "0" * 64, "prompts": [[20, 20, 1]], "multimask_output": True}
    ask("ann", "POST", f"/api/tasks/{task['id']}/decode", body, status=409)
    ask("ann", "PUT", commit_url(), commit_body(task, checkpoint="0" * 64), status=409)
    embedding = poll(ask, f"/api/tasks/{task['id']}/embedding?checkpoint={model['checkpoint']}")
    shape = [int(side) for side in embedding.headers["x-shape"].split(",")]
    values = np.frombuffer(embedding.content, "<f2").astype(np.float32).reshape(1, *shape)
    session = onnxruntime.InferenceSession(ask("ann", "GET", model["decoder"]).content)
    side, scale = model["logits_size"], model["image_size"] / WIDTH
    mask = np.random.default_rng(0).standard_normal((1, 1, side, side)).astype(np.float16)
    points = np.array([[[20 * scale, 20 * scale], [0, 0]]], np.float32)
    inputs = {"image_embeddings": values, "point_coords": points, "point_labels": np.array([[1, -1]], np.float32)}
    inputs |= {"mask_input": mask.astype(np.float32), "has_mask_input": np.ones(1, np.float32)}
    scores, low = session.run(["iou_predictions", "low_res_masks"], inputs)
    body |= {"checkpoint": model["checkpoint"], "mask_logits": base64.b64encode(mask.tobytes()).decode()}
    answer = ask("ann", "POST", f"/api/tasks/{task['id']}/decode", body)
    logits = np.frombuffer(answer.content, "<f2").astype(np.float32).reshape(3, side, side)
    np.testing.assert_allclose(logits, low[0, 1:], atol=2e-3 * np.abs(low).max())
    np.testing.assert_allclose([float(s) for s in answer.headers["x-iou-scores"].split(",")], scores[0, 1:], atol=1e-4)
    body |= {"mask_logits": base64.b64encode(b"123").decode()}
    ask("ann", "POST", f"/api/tasks/{task['id']}/decode", body, status=422)


def poll(ask: ApiClient, path: str, method: str = "GET", name: str = "ann") -> Any:
    for _ in range(600):
        headers = {"Authorization": f"Bearer {ask.links[name].rpartition('#')[2]}"}
        answer = ask.http.request(method, path, headers=headers)
        if answer.status_code != 202:
            assert answer.status_code == 200, answer.text
            return answer
        time.sleep(0.05)
    raise AssertionError("the response is still pending")


def test_accepts_rejects_and_edits_existing_masks(config: Callable[..., DictConfig]) -> None:
    ask = ApiClient(config("show_existing_masks=true"))
    task = ask.next()
    first, second = task["masks"]
    assert [first["origin"], second["origin"]] == ["proposed", "proposed"]
    assert ask.next()["masks"] == task["masks"], "proposed once"
    accepted = commit_body(task, mask=first["mask"], rle=first["rle"], origin="accepted", clicks=0, prompts=[])
    changed = accepted | {"rle": encode_rle(make_mask(HEIGHT, WIDTH, 3))}
    assert "edited, not accepted" in ask("ann", "PUT", commit_url(), changed, status=422)["error"]
    ask("ann", "PUT", commit_url(), accepted)
    ask("ann", "PUT", commit_url(), {"task": task["id"], "mask": second["mask"], "kind": "delete"})
    other = ask.next("bob")
    half = make_mask(HEIGHT, WIDTH, 0)
    half[: HEIGHT // 4] = False
    ask("bob", "PUT", commit_url(), commit_body(other, mask=other["masks"][0]["mask"], rle=encode_rle(half), origin="edited"))
    for name, ended in (("ann", task), ("bob", other)):
        ask(name, "POST", f"/api/tasks/{ended['id']}/done")
    numbers = ask("eve", "GET", "/api/summary")
    assert [row["origins"] for row in numbers["annotators"]] == [{"accepted": 1}, {"edited": 1}]
    assert (numbers["corrections"]["masks"], numbers["corrections"]["rejected"]) == (2, 1)
    assert (numbers["corrections"]["above_0.90"], numbers["corrections"]["above_0.75"]) == (0.5, 0.5)


def test_model_proposals_are_added_once(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    """Duplicates of the annotator's masks are not proposed; accepted masks keep the scores of the model."""
    ask = ApiClient(config(f"checkpoint={checkpoint}", *write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)))
    assert ask("ann", "GET", "/api/session")["has_proposals"]
    task = ask.next()
    assert task["masks"] == []
    path = f"/api/tasks/{task['id']}/proposals"
    ask("bob", "POST", path, status=403)
    masks = poll(ask, path, "POST").json()["masks"]
    ask("eve", "POST", path, status=403)
    assert 1 <= len(masks) <= 5
    assert {mask["origin"] for mask in masks} == {"proposed"}
    first = masks[0]
    accepted = commit_body(
        task, mask=first["mask"], rle=first["rle"], origin="accepted", clicks=0, prompts=[], predicted_iou=0.123
    )
    ask("ann", "PUT", commit_url(), accepted)
    for mask in masks[1:]:
        ask("ann", "PUT", commit_url(), {"task": task["id"], "mask": mask["mask"], "kind": "delete"})
    (kept,) = poll(ask, path, "POST").json()["masks"]
    assert (kept["origin"], kept["predicted_iou"]) == ("accepted", first["predicted_iou"])
    assert [label for *_, label in kept["prompts"]] == [2, 3], "the box"
    other = ask.next("bob")
    assert ask.context.embedding_service is not None
    while (generated := ask.context.embedding_service.request_proposals(other["image"])) is None:
        time.sleep(0.05)
    ask("bob", "PUT", commit_url(), commit_body(other, rle=generated[0].rle))
    after = poll(ask, f"/api/tasks/{other['id']}/proposals", "POST", "bob").json()["masks"]
    assert [mask["origin"] for mask in after[:1]] == ["drawn"]
    assert generated[0].rle["counts"] not in [mask["rle"]["counts"] for mask in after[1:]]
    ask.close()


def test_rejects_proposals_without_a_model(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    proposer = write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)
    for overrides, message in (
        ([], "give checkpoint="),
        ([f"checkpoint={checkpoint}", "show_existing_masks=true"], "excludes show_existing_masks"),
    ):
        with pytest.raises(ConfigError, match=message):
            annotate.check_config(config(*proposer, *overrides))
    ask = ApiClient(config(f"checkpoint={checkpoint}"))
    assert "without generator@proposals=" in ask("ann", "POST", f"/api/tasks/{ask.next()['id']}/proposals", status=404)["error"]
    ask.close()


def test_text_prompts_name_their_proposals(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The text prompt is exported as the name of accepted and edited masks; new masks have no name."""
    checkpoint = write_nano_checkpoint(tmp_path / "text.pt", text_dim=DIM)
    cfg = config(f"checkpoint={checkpoint}", *permissive_text_generator(tmp_path / "clip", ["cat", "red car", "dog"]))
    ask = ApiClient(cfg)
    task = ask.next()
    masks = poll(ask, f"/api/tasks/{task['id']}/proposals", "POST").json()["masks"]
    assert len(masks) == 3, "choose other text prompts if a mask is empty"
    assert {mask["name"] for mask in masks} == {"cat", "red car", "dog"}
    kept, edited, deleted = masks
    ask(
        "ann", "PUT", commit_url(), commit_body(task, mask=kept["mask"], rle=kept["rle"], origin="accepted", clicks=0, prompts=[])
    )
    ask("ann", "PUT", commit_url(), commit_body(task, mask=edited["mask"], origin="edited"))
    ask("ann", "PUT", commit_url(), {"task": task["id"], "mask": deleted["mask"], "kind": "delete"})
    ask("ann", "PUT", commit_url(), commit_body(task, 1))
    ask("ann", "POST", f"/api/tasks/{task['id']}/done")
    ask.close()
    annotate.export_shards(cfg)
    (sample,) = iterate_samples([tmp_path / "out" / "shards" / "sa_web_000000.tar"])
    made = [(mask.provenance.name, mask.provenance.origin) for mask in sample.record.masks if mask.provenance]
    assert made == [(kept["name"], "accepted"), (edited["name"], "edited"), ("", "drawn")]


def test_grid_proposals_and_rejects_text_for_a_model_without_text(
    config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="takes no text prompts"):
        annotate.create_application(config(f"checkpoint={checkpoint}", *permissive_text_generator(tmp_path / "clip", ["cat"])))
    thresholds = ["pred_iou_thresh=-100", "stability_score_thresh=0", "min_region_area_px=0", "points_per_side=2"]
    grid = ["generator@proposals=paper", *(f"proposals.{value}" for value in thresholds)]
    ask = ApiClient(config(f"checkpoint={checkpoint}", *grid))
    masks = poll(ask, f"/api/tasks/{ask.next()['id']}/proposals", "POST").json()["masks"]
    assert masks
    assert {(mask["name"], mask["origin"]) for mask in masks} == {("", "proposed")}
    ask.close()


def test_exports_finished_images_once(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Each finished image is exported once, with its provenance; a later export adds only newly finished images."""
    cfg = config("images_per_shard=2")
    ask = ApiClient(cfg)
    for _ in range(2):
        task = ask.next()
        ask("ann", "PUT", commit_url(), commit_body(task, 0))
        ask("ann", "PUT", commit_url(), commit_body(task, 1, origin="clicked", strokes=0, seconds=2.0))
        ask("ann", "POST", f"/api/tasks/{task['id']}/done")
    skipped, open_ = ask.next("ann"), ask.next("bob")
    ask("ann", "POST", f"/api/tasks/{skipped['id']}/skip", {"reason": SKIP_REASONS[0]})
    annotate.export_shards(cfg)
    annotate.export_shards(cfg)
    shards = tmp_path / "out" / "shards"
    assert sorted(path.name for path in shards.glob("*.tar")) == ["sa_web_000000.tar"]
    samples = list(iterate_samples([shards / "sa_web_000000.tar"]))
    assert [sample.record.key for sample in samples] == ["sa_000000", "sa_000001"]
    for sample in samples:
        assert [mask.provenance.annotator for mask in sample.record.masks if mask.provenance] == ["ann", "ann"]
        assert [mask.provenance.seconds for mask in sample.record.masks if mask.provenance] == [4.0, 2.0]
        assert sample.record.masks[0].segmentation == encode_rle(make_mask(HEIGHT, WIDTH, 0))
    counts = load_manifest(shards / "sa_web_000000.tar").counts
    assert counts == {"clicks": 4, "masks_clicked": 2, "masks_drawn": 2, "seconds": 12.0, "strokes": 4}
    provenances = [mask.provenance for sample in samples for mask in sample.record.masks if mask.provenance]
    assert [(mask.origin, mask.clicks, mask.strokes) for mask in provenances] == [("drawn", 1, 2), ("clicked", 1, 0)] * 2
    assert "exported already" in ask("ann", "POST", f"/api/tasks/{task['id']}/reopen", status=409)["error"]
    ask("bob", "POST", f"/api/tasks/{open_['id']}/done")
    annotate.export_shards(cfg)
    assert [sample.record.key for sample in iterate_samples([shards / "sa_web_000001.tar"])] == [open_["image"]]


def test_export_after_a_crash_writes_the_same_shard(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config()
    ask = ApiClient(cfg)
    task = ask.next()
    ask("ann", "PUT", commit_url(), commit_body(task))
    ask("ann", "POST", f"/api/tasks/{task['id']}/done")
    annotate.export_shards(cfg)
    shard = tmp_path / "out" / "shards" / "sa_web_000000.tar"
    before = shard.read_bytes()
    for path in shard.parent.iterdir():
        path.unlink()
    annotate.export_shards(cfg)
    assert shard.read_bytes() == before


def test_summary_of_costs_and_agreement(config: Callable[..., DictConfig]) -> None:
    ask = ApiClient(config("overlap=2"))
    for name, seconds in (("ann", 4.0), ("bob", 8.0)):
        task = ask.next(name)
        ask(name, "PUT", commit_url(), commit_body(task, 0, seconds=seconds, wall_seconds=seconds + 5))
        if name == "ann":
            ask(name, "PUT", commit_url(), commit_body(task, 1, seconds=6.0, wall_seconds=6.0))
        ask(name, "POST", f"/api/tasks/{task['id']}/done")
    numbers = ask("eve", "GET", "/api/summary")
    ann, bob = numbers["annotators"]
    assert (ann["masks"], ann["seconds_per_mask"], ann["masks_per_minute"]) == (2, 5.0, 12.0)
    assert (bob["masks"], bob["idle_seconds_per_mask"], bob["clicks_per_mask"], bob["strokes_per_mask"]) == (1, 5.0, 1, 2)
    assert numbers["agreement"] == {"images": 1, "mean_iou": 1.0, "paired": 2 / 3}
    own = ask("bob", "GET", "/api/summary")
    assert [row["annotator"] for row in own["annotators"]] == ["bob"], "annotators see only their own rows"
    assert "agreement" not in own


def test_tokens_are_created_once_with_private_mode(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = load_or_create_tokens(path, ["ann"], ["eve"])
    assert path.stat().st_mode & 0o077 == 0
    second = load_or_create_tokens(path, ["ann", "bob"], [])
    assert second["ann"] == first["ann"]
    assert len({token for token, _ in second.values()}) == 3


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"ann": ("short", "annotator")}, "expected at least 16"),
        ({"ann": ("x" * 20, "owner")}, "expected annotator or reviewer"),
        ({"a b": ("x" * 20, "annotator")}, "letters, digits"),
        ({"ann": ("x" * 20, "annotator"), "bob": ("x" * 20, "annotator")}, "the same token"),
    ],
)
def test_rejects_weak_tokens(tokens: dict[str, tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AccessTokens(tokens)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus=null", "needs corpus="),
        ("overlap=0", "overlap is 0"),
        ("lease_s=0", "lease_s is 0"),
        ("action=x", "action is 'x'"),
    ],
)
def test_rejects_invalid_config_values(config: Callable[..., DictConfig], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        annotate.check_config(config(override))
