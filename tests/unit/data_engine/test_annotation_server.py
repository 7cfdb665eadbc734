"""The server from outside: who may what, bad input is refused with a clear 4xx and writes nothing, a commit counts once,
embeddings and decoder are of one checkpoint, finished images come out as shards with their provenance."""

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
from sam_train.masks import encode_rle
from sam_train.shards import iterate_samples, load_manifest, write_shard

HEIGHT, WIDTH = 48, 64
Ask = Callable[..., Any]


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
    def made(*overrides: str) -> DictConfig:
        with initialize_config_dir(version_base="1.3", config_dir=config_dir()):
            wanted = [
                f"corpus={corpus}",
                f"out={tmp_path / 'out'}",
                "annotators=[ann,bob]",
                "reviewers=[eve]",
                "threads=1",
                "privacy=none",
            ]
            return compose("annotate", overrides=[*wanted, *overrides])

    return made


class Asking:
    """Clients by name at one application."""

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
def ask(config: Callable[..., DictConfig]) -> Iterator[Asking]:
    """Without a model."""
    asking = Asking(config())
    yield asking
    asking.close()


@pytest.fixture
def ask_model(config: Callable[..., DictConfig], checkpoint: Path) -> Iterator[Asking]:
    asking = Asking(config(f"checkpoint={checkpoint}"))
    yield asking
    asking.close()


def put(task: dict[str, Any], index: int = 0, **changes: object) -> dict[str, Any]:
    body = {
        "task": task["id"], "mask": str(uuid.uuid4()), "kind": "put", "rle": encode_rle(make_mask(HEIGHT, WIDTH, index)),
        "origin": "drawn", "strokes": 2, "clicks": 1, "prompts": [[5.0, 5.0, 1]], "seconds": 4.0, "wall_seconds": 9.0,
    }  # fmt: skip
    return body | changes


def url() -> str:
    return f"/api/commits/{uuid.uuid4()}"


def test_without_a_token_there_is_nothing(ask: Asking) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Cookie": "sam_annotate=wrong"}):
        answer = ask.http.post("/api/next", headers=headers)
        assert answer.status_code == 401
        assert "log in" in answer.json()["error"]
    assert ask.http.get("/").headers["location"] == "/login"
    assert ask.context.queue.count_by_state() == {"queued": 4}


def test_logging_in_sets_a_cookie_that_no_script_reads(ask: Asking) -> None:
    token = ask.links["ann"].rpartition("#")[2]
    assert ask.http.post("/login", data={"token": "wrong"}).headers["location"] == "/login?invalid"
    answer = ask.http.post("/login", data={"token": token})
    assert answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    assert ask.http.get("/api/session").json()["annotator"] == "ann"
    assert "main.js" in ask.http.get("/").text
    ask.http.post("/logout")
    assert ask.http.get("/api/session").status_code == 401


def test_every_answer_carries_the_headers(ask: Asking) -> None:
    for path in ("/login", "/static/main.js", "/api/session", "/nothing"):
        answer = ask.http.get(path)
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_a_page_by_another_name_is_refused(ask: Asking) -> None:
    assert ask.http.get("/login", headers={"Host": "evil.example"}).status_code == 400


def test_the_page_is_whole(ask: Asking) -> None:
    """What the pages and the modules name is there, and nothing comes from elsewhere."""
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
def test_files_outside_are_not_served(ask: Asking, path: str) -> None:
    assert ask.http.get(f"/static{path}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/api/tasks/..%2f1", "/api/tasks/1%2f..%2f2/image", "/api/tasks/x/image", "/api/tasks/-1/image"]
)
def test_a_task_is_a_number_and_nothing_else(ask: Asking, path: str) -> None:
    answer = ask.http.get(f"/api/tasks/{path}", headers={"Authorization": f"Bearer {ask.links['ann'].rpartition('#')[2]}"})
    assert answer.status_code in (404, 422)


def test_a_body_too_large_is_not_read(ask: Asking) -> None:
    headers = {"Authorization": f"Bearer {ask.links['ann'].rpartition('#')[2]}"}
    announced = ask.http.put(url(), content=b"x", headers=headers | {"Content-Length": str(10**9)})
    streamed = ask.http.put(url(), content=(bytes(1 << 20) for _ in range(20)), headers=headers)
    for answer in (announced, streamed):
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]


def test_a_commit_counts_once(ask: Asking) -> None:
    task = ask.next()
    body, address = put(task), url()
    assert ask("ann", "PUT", address, body)["new"] is True
    assert ask("ann", "PUT", address, body)["new"] is False
    (mask,) = ask.masks(task)
    assert (mask["seconds"], mask["strokes"], mask["area"]) == (4.0, 2, int(make_mask(HEIGHT, WIDTH, 0).sum()))
    assert "another content" in ask("ann", "PUT", address, body | {"seconds": 5.0}, status=409)["error"]
    ask("ann", "PUT", url(), body | {"rle": encode_rle(make_mask(HEIGHT, WIDTH, 1))})
    (mask,) = ask.masks(task)
    assert mask["seconds"] == 8.0, "the time of both versions"
    assert mask["rle"] == encode_rle(make_mask(HEIGHT, WIDTH, 1))
    ask("ann", "PUT", url(), {"task": task["id"], "mask": body["mask"], "kind": "delete"})
    assert ask.masks(task) == []


BAD = {
    "an RLE of another size": {"rle": encode_rle(np.ones((WIDTH, HEIGHT), bool))},
    "runs that do not add up": {"rle": {"size": [HEIGHT, WIDTH], "counts": "0ooooo3"}},
    "runs cut in the middle": {"rle": {"size": [HEIGHT, WIDTH], "counts": "oo"}},
    "letters of no RLE": {"rle": {"size": [HEIGHT, WIDTH], "counts": "é~"}},
    "a huge size": {"rle": {"size": [10**6, 10**6], "counts": "0"}},
    "an empty mask": {"rle": encode_rle(np.zeros((HEIGHT, WIDTH), bool))},
    "no mask": {"rle": None},
    "negative seconds": {"seconds": -1.0},
    "more work than time": {"seconds": 100.0},
    "years": {"seconds": 1.0, "wall_seconds": 1e9},
    "a prompt outside": {"prompts": [[1e6, 0.0, 1]]},
    "a label that is none": {"prompts": [[1.0, 1.0, 9]]},
    "another origin": {"origin": "proposed"},
    "accepting what was not proposed": {"origin": "accepted"},
    "an unknown key": {"path": "../../x"},
    "a mask id that is a path": {"mask": "../../x"},
    "a checkpoint that is none": {"checkpoint": "../x"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_bad_commits_write_nothing(ask: Asking, changes: dict[str, object]) -> None:
    task = ask.next()
    assert ask("ann", "PUT", url(), put(task) | changes, status=422)["error"]
    assert ask.masks(task) == []
    assert list(ask.context.queue.database.connection.execute("SELECT * FROM commits")) == []


def test_no_number_and_no_json_are_refused(ask: Asking) -> None:
    task = ask.next()
    text = json.dumps(put(task)).replace("4.0", "NaN")
    for content in (text, "{", '"x"', "[" * 100_000):
        token = ask.links["ann"].rpartition("#")[2]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = ask.http.put(url(), content=content, headers=headers)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]
    assert ask.masks(task) == []


def test_tasks_of_others_are_theirs(ask: Asking) -> None:
    task = ask.next("ann")
    for path in ("", "/image"):
        assert "not yours" in ask("bob", "GET", f"/api/tasks/{task['id']}{path}", status=403)["error"]
    ask("bob", "PUT", url(), put(task), status=403)
    ask("bob", "POST", f"/api/tasks/{task['id']}/done", status=403)
    ask("bob", "POST", f"/api/tasks/{task['id']}/review", {"accept": True}, status=403)
    ask("bob", "POST", "/api/review/next", status=403)
    assert ask("eve", "GET", f"/api/tasks/{task['id']}")["task"]["image"] == task["image"]


def test_a_mask_stays_with_its_task(ask: Asking) -> None:
    first, second = ask.next("ann"), ask.next("bob")
    body = put(first)
    ask("ann", "PUT", url(), body)
    assert "another task" in ask("bob", "PUT", url(), body | {"task": second["id"]}, status=409)["error"]
    ask("bob", "PUT", url(), {"task": second["id"], "mask": body["mask"], "kind": "delete"}, status=404)
    assert len(ask.masks(first)) == 1


def test_a_picture_that_does_not_decode_is_skipped_by_name(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "b.jpg")
    ask = Asking(config(f"corpus={folder}"))
    assert ask.next()["image"] == "b"
    (reason,) = ask.context.queue.database.connection.execute("SELECT reason FROM tasks WHERE image = 'a'").fetchone()
    assert reason.startswith("does not decode")


def test_embedding_and_decoder_are_of_one_checkpoint(ask_model: Asking, checkpoint: Path, tmp_path: Path) -> None:
    """The page's way, decoder in ONNX on the embedding, answers as the server's own decoder does."""
    ask, task = ask_model, ask_model.next()
    model = ask("ann", "GET", "/api/session")["model"]
    for path in (f"/api/tasks/{task['id']}/embedding?checkpoint={'0' * 64}", f"/api/decoder/{'0' * 64}"):
        assert "reload the page" in ask("ann", "GET", path, status=409)["error"]
    asked = {"checkpoint": "0" * 64, "prompts": [[20, 20, 1]], "multimask_output": True}
    ask("ann", "POST", f"/api/tasks/{task['id']}/decode", asked, status=409)
    ask("ann", "PUT", url(), put(task, checkpoint="0" * 64), status=409)
    embedding = waited(ask, f"/api/tasks/{task['id']}/embedding?checkpoint={model['checkpoint']}")
    shape = [int(side) for side in embedding.headers["x-shape"].split(",")]
    values = np.frombuffer(embedding.content, "<f2").astype(np.float32).reshape(1, *shape)
    session = onnxruntime.InferenceSession(ask("ann", "GET", model["decoder"]).content)
    side, scale = model["logits_size"], model["image_size"] / WIDTH
    mask = np.random.default_rng(0).standard_normal((1, 1, side, side)).astype(np.float16)
    points = np.array([[[20 * scale, 20 * scale], [0, 0]]], np.float32)
    given = {"image_embeddings": values, "point_coords": points, "point_labels": np.array([[1, -1]], np.float32)}
    given |= {"mask_input": mask.astype(np.float32), "has_mask_input": np.ones(1, np.float32)}
    scores, low = session.run(["iou_predictions", "low_res_masks"], given)
    asked |= {"checkpoint": model["checkpoint"], "mask_logits": base64.b64encode(mask.tobytes()).decode()}
    answer = ask("ann", "POST", f"/api/tasks/{task['id']}/decode", asked)
    theirs = np.frombuffer(answer.content, "<f2").astype(np.float32).reshape(3, side, side)
    np.testing.assert_allclose(theirs, low[0, 1:], atol=2e-3 * np.abs(low).max())
    np.testing.assert_allclose([float(s) for s in answer.headers["x-iou-scores"].split(",")], scores[0, 1:], atol=1e-4)
    asked |= {"mask_logits": base64.b64encode(b"123").decode()}
    ask("ann", "POST", f"/api/tasks/{task['id']}/decode", asked, status=422)


def waited(ask: Asking, path: str, method: str = "GET", name: str = "ann") -> Any:
    for _ in range(600):
        headers = {"Authorization": f"Bearer {ask.links[name].rpartition('#')[2]}"}
        answer = ask.http.request(method, path, headers=headers)
        if answer.status_code != 202:
            assert answer.status_code == 200, answer.text
            return answer
        time.sleep(0.05)
    raise AssertionError("no embedding")


def test_proposed_masks_are_accepted_rejected_or_edited(config: Callable[..., DictConfig]) -> None:
    ask = Asking(config("show_existing_masks=true"))
    task = ask.next()
    first, second = task["masks"]
    assert [first["origin"], second["origin"]] == ["proposed", "proposed"]
    assert ask.next()["masks"] == task["masks"], "proposed once"
    accepted = put(task, mask=first["mask"], rle=first["rle"], origin="accepted", clicks=0, prompts=[])
    changed = accepted | {"rle": encode_rle(make_mask(HEIGHT, WIDTH, 3))}
    assert "edited, not accepted" in ask("ann", "PUT", url(), changed, status=422)["error"]
    ask("ann", "PUT", url(), accepted)
    ask("ann", "PUT", url(), {"task": task["id"], "mask": second["mask"], "kind": "delete"})
    other = ask.next("bob")
    half = make_mask(HEIGHT, WIDTH, 0)
    half[: HEIGHT // 4] = False
    ask("bob", "PUT", url(), put(other, mask=other["masks"][0]["mask"], rle=encode_rle(half), origin="edited"))
    for name, done in (("ann", task), ("bob", other)):
        ask(name, "POST", f"/api/tasks/{done['id']}/done")
    numbers = ask("eve", "GET", "/api/summary")
    assert [row["origins"] for row in numbers["annotators"]] == [{"accepted": 1}, {"edited": 1}]
    assert (numbers["corrections"]["masks"], numbers["corrections"]["rejected"]) == (2, 1)
    assert (numbers["corrections"]["above_0.90"], numbers["corrections"]["above_0.75"]) == (0.5, 0.5)


def test_what_the_model_proposes_is_shown_once(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    """Not what the annotator has made meanwhile; what is accepted keeps what the model said of it."""
    ask = Asking(config(f"checkpoint={checkpoint}", *write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)))
    assert ask("ann", "GET", "/api/session")["has_proposals"]
    task = ask.next()
    assert task["masks"] == []
    path = f"/api/tasks/{task['id']}/proposals"
    ask("bob", "POST", path, status=403)
    masks = waited(ask, path, "POST").json()["masks"]
    ask("eve", "POST", path, status=403)
    assert 1 <= len(masks) <= 5
    assert {mask["origin"] for mask in masks} == {"proposed"}
    first = masks[0]
    accepted = put(task, mask=first["mask"], rle=first["rle"], origin="accepted", clicks=0, prompts=[], predicted_iou=0.123)
    ask("ann", "PUT", url(), accepted)
    for mask in masks[1:]:
        ask("ann", "PUT", url(), {"task": task["id"], "mask": mask["mask"], "kind": "delete"})
    (kept,) = waited(ask, path, "POST").json()["masks"]
    assert (kept["origin"], kept["predicted_iou"]) == ("accepted", first["predicted_iou"])
    assert [label for *_, label in kept["prompts"]] == [2, 3], "the box"
    other = ask.next("bob")
    assert ask.context.embedding_service is not None
    while (made := ask.context.embedding_service.request_proposals(other["image"])) is None:
        time.sleep(0.05)
    ask("bob", "PUT", url(), put(other, rle=made[0].rle))
    after = waited(ask, f"/api/tasks/{other['id']}/proposals", "POST", "bob").json()["masks"]
    assert [mask["origin"] for mask in after[:1]] == ["drawn"]
    assert made[0].rle["counts"] not in [mask["rle"]["counts"] for mask in after[1:]]
    ask.close()


def test_a_proposer_wants_its_model(config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path) -> None:
    proposer = write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)
    for overrides, message in (
        ([], "give checkpoint="),
        ([f"checkpoint={checkpoint}", "show_existing_masks=true"], "excludes show_existing_masks"),
    ):
        with pytest.raises(ConfigError, match=message):
            annotate.check_config(config(*proposer, *overrides))
    ask = Asking(config(f"checkpoint={checkpoint}"))
    assert "without generator@proposals=" in ask("ann", "POST", f"/api/tasks/{ask.next()['id']}/proposals", status=404)["error"]
    ask.close()


def test_what_words_find_is_proposed_by_name(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The word goes with its mask, accepted or edited, into the shard; what the annotator makes has none."""
    checkpoint = write_nano_checkpoint(tmp_path / "words.pt", text_dim=DIM)
    cfg = config(f"checkpoint={checkpoint}", *permissive_text_generator(tmp_path / "clip", ["cat", "red car", "dog"]))
    ask = Asking(cfg)
    task = ask.next()
    masks = waited(ask, f"/api/tasks/{task['id']}/proposals", "POST").json()["masks"]
    assert len(masks) == 3, "other words, if a word has no pixel"
    assert {mask["name"] for mask in masks} == {"cat", "red car", "dog"}
    kept, changed, gone = masks
    ask("ann", "PUT", url(), put(task, mask=kept["mask"], rle=kept["rle"], origin="accepted", clicks=0, prompts=[]))
    ask("ann", "PUT", url(), put(task, mask=changed["mask"], origin="edited"))
    ask("ann", "PUT", url(), {"task": task["id"], "mask": gone["mask"], "kind": "delete"})
    ask("ann", "PUT", url(), put(task, 1))
    ask("ann", "POST", f"/api/tasks/{task['id']}/done")
    ask.close()
    annotate.export_shards(cfg)
    (sample,) = iterate_samples([tmp_path / "out" / "shards" / "sa_web_000000.tar"])
    made = [(mask.provenance.name, mask.provenance.origin) for mask in sample.record.masks if mask.provenance]
    assert made == [(kept["name"], "accepted"), (changed["name"], "edited"), ("", "drawn")]


def test_a_grid_proposes_and_a_model_without_words_is_refused(
    config: Callable[..., DictConfig], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="takes no text prompts"):
        annotate.create_application(config(f"checkpoint={checkpoint}", *permissive_text_generator(tmp_path / "clip", ["cat"])))
    anything = ["pred_iou_thresh=-100", "stability_score_thresh=0", "min_region_area_px=0", "points_per_side=2"]
    grid = ["generator@proposals=paper", *(f"proposals.{value}" for value in anything)]
    ask = Asking(config(f"checkpoint={checkpoint}", *grid))
    masks = waited(ask, f"/api/tasks/{ask.next()['id']}/proposals", "POST").json()["masks"]
    assert masks
    assert {(mask["name"], mask["origin"]) for mask in masks} == {("", "proposed")}
    ask.close()


def test_finished_images_become_shards(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Once each, with who made each mask and how; what is not finished stays; started again, only what is new."""
    cfg = config("images_per_shard=2")
    ask = Asking(cfg)
    for _ in range(2):
        task = ask.next()
        ask("ann", "PUT", url(), put(task, 0))
        ask("ann", "PUT", url(), put(task, 1, origin="clicked", strokes=0, seconds=2.0))
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
    told = [mask.provenance for sample in samples for mask in sample.record.masks if mask.provenance]
    assert [(mask.origin, mask.clicks, mask.strokes) for mask in told] == [("drawn", 1, 2), ("clicked", 1, 0)] * 2
    assert "exported already" in ask("ann", "POST", f"/api/tasks/{task['id']}/reopen", status=409)["error"]
    ask("bob", "POST", f"/api/tasks/{open_['id']}/done")
    annotate.export_shards(cfg)
    assert [sample.record.key for sample in iterate_samples([shards / "sa_web_000001.tar"])] == [open_["image"]]


def test_a_shard_that_a_crash_left_out_comes_out_the_same(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config()
    ask = Asking(cfg)
    task = ask.next()
    ask("ann", "PUT", url(), put(task))
    ask("ann", "POST", f"/api/tasks/{task['id']}/done")
    annotate.export_shards(cfg)
    shard = tmp_path / "out" / "shards" / "sa_web_000000.tar"
    before = shard.read_bytes()
    for path in shard.parent.iterdir():
        path.unlink()
    annotate.export_shards(cfg)
    assert shard.read_bytes() == before


def test_costs_by_annotator_and_agreement_of_two(config: Callable[..., DictConfig]) -> None:
    ask = Asking(config("overlap=2"))
    for name, seconds in (("ann", 4.0), ("bob", 8.0)):
        task = ask.next(name)
        ask(name, "PUT", url(), put(task, 0, seconds=seconds, wall_seconds=seconds + 5))
        if name == "ann":
            ask(name, "PUT", url(), put(task, 1, seconds=6.0, wall_seconds=6.0))
        ask(name, "POST", f"/api/tasks/{task['id']}/done")
    numbers = ask("eve", "GET", "/api/summary")
    ann, bob = numbers["annotators"]
    assert (ann["masks"], ann["seconds_per_mask"], ann["masks_per_minute"]) == (2, 5.0, 12.0)
    assert (bob["masks"], bob["idle_seconds_per_mask"], bob["clicks_per_mask"], bob["strokes_per_mask"]) == (1, 5.0, 1, 2)
    assert numbers["agreement"] == {"images": 1, "mean_iou": 1.0, "paired": 2 / 3}
    own = ask("bob", "GET", "/api/summary")
    assert [row["annotator"] for row in own["annotators"]] == ["bob"], "others' numbers are not theirs to see"
    assert "agreement" not in own


def test_tokens_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first = load_or_create_tokens(path, ["ann"], ["eve"])
    assert path.stat().st_mode & 0o077 == 0
    again = load_or_create_tokens(path, ["ann", "bob"], [])
    assert again["ann"] == first["ann"]
    assert len({token for token, _ in again.values()}) == 3


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"ann": ("short", "annotator")}, "expected at least 16"),
        ({"ann": ("x" * 20, "owner")}, "expected annotator or reviewer"),
        ({"a b": ("x" * 20, "annotator")}, "letters, digits"),
        ({"ann": ("x" * 20, "annotator"), "bob": ("x" * 20, "annotator")}, "the same token"),
    ],
)
def test_weak_tokens_are_refused(tokens: dict[str, tuple[str, str]], message: str) -> None:
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
def test_wrong_values_are_named(config: Callable[..., DictConfig], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        annotate.check_config(config(override))
