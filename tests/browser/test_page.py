"""What an annotator does, done by mouse and keys in a real browser. What counts is what the server has afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_sample
from playwright.sync_api import Page
from server_fixtures import Server, permissive_text_generator, run_server, write_nano_checkpoint, write_permissive_proposer
from tiny_clip import DIM

from sam_train.geometry import Resize
from sam_train.masks import decode_rle, encode_rle
from sam_train.shards import write_shard

pytestmark = pytest.mark.slow
HEIGHT, WIDTH = 240, 320


def decoded(mask: dict[str, Any]) -> np.ndarray:
    return decode_rle(mask["rle"], height=HEIGHT, width=WIDTH)


def test_it_decodes_in_the_browser_with_threads(at: Any) -> None:
    assert at.see("crossOriginIsolated") is True
    assert "in the browser" in at.page.inner_text("#runtime")


def test_hover_click_remove_cycle_commit(at: Any) -> None:
    at.move(100, 100)
    at.until("app.preview.layers !== null")
    at.click(100, 100)
    assert at.see("app.editor.state.prediction.numMasks") == 3
    assert at.see("app.preview.layers === null")
    choice = at.see("app.editor.state.choice")
    at.press("c")
    assert at.see("app.editor.state.choice") == (choice + 1) % 3
    at.press("Shift+C")
    assert at.see("app.editor.state.choice") == choice
    at.click(250, 200, button="right")
    at.click(40, 30)
    assert at.see("app.editor.state.points.map((p) => p.label)") == [1, 0, 1]
    assert at.see("app.editor.state.prediction.numMasks") == 1, "not ambiguous any more"
    at.press("f")
    (mask,) = at.stored()
    assert [prompt[2] for prompt in mask["prompts"]] == [1, 0, 1]
    np.testing.assert_allclose([prompt[:2] for prompt in mask["prompts"]], [[100, 100], [250, 200], [40, 30]], atol=1)
    assert (mask["origin"], mask["clicks"], mask["strokes"]) == ("clicked", 3, 0)
    assert at.see("app.editor.isEmpty")


def test_the_mask_is_what_torch_makes_of_the_same_clicks(at: Any, checkpoint: Path) -> None:
    """Embedding, ONNX in WebAssembly, resampling and RLE in the page against the predictor."""
    from sam_train.inference import load_predictor
    from sam_train.inference.prompt_arrays import make_prompts
    from sam_train.shards import decode_jpeg

    at.click(120, 90)
    at.press("f")
    (mask,) = at.stored()
    jpeg = bytes(
        at.see("fetch(`/api/tasks/${app.tasks.task.id}/image`).then((a) => a.arrayBuffer()).then((b) => [...new Uint8Array(b)])")
    )
    predictor = load_predictor(checkpoint)
    predictor.set_image(decode_jpeg(jpeg, shard="", key=""))
    point = np.array([mask["prompts"][0][:2]])
    answer = predictor.predict(make_prompts(points_xy=point), multimask_output=True).best()
    expected = predictor.masks_to_image(answer.mask_logits)[0, 0].numpy()
    assert (decoded(mask) != expected).mean() < 2e-3
    assert mask["predicted_iou"] == pytest.approx(float(answer.iou_scores[0, 0]), abs=2e-3)


def test_points_move_and_go_and_a_box_is_drawn(at: Any) -> None:
    at.click(100, 100)
    at.drag((100, 100), (150, 120))
    (point,) = at.see("app.editor.state.points")
    assert (round(point["x"]), round(point["y"])) == (150, 120)
    at.click(150, 120, button="right")
    assert at.see("app.editor.isEmpty"), "a right click on a point deletes it"
    at.drag((60, 60), (200, 180))
    np.testing.assert_allclose(at.see("app.editor.state.box"), [60, 60, 200, 180], atol=1)
    at.press("f")
    (mask,) = at.stored()
    assert [prompt[2] for prompt in mask["prompts"]] == [2, 3]


def test_brush_erase_undo_redo(at: Any) -> None:
    at.press("2")
    at.see("app.tools.setRadius(10)")
    at.drag((80, 80), (160, 80))
    painted = at.see("app.editor.bits.reduce((a, b) => a + b)")
    assert painted == pytest.approx(80 * 20 + np.pi * 100, rel=0.05)
    at.press("3")
    at.drag((120, 40), (120, 120))
    erased = at.see("app.editor.bits.reduce((a, b) => a + b)")
    assert erased == pytest.approx(painted - 400, rel=0.1)
    at.press("z")
    assert at.see("app.editor.bits.reduce((a, b) => a + b)") == painted
    at.press("y")
    assert at.see("app.editor.bits.reduce((a, b) => a + b)") == erased
    at.press("f")
    (mask,) = at.stored()
    assert (mask["origin"], mask["strokes"], mask["clicks"], mask["area"]) == ("drawn", 2, 0, erased)
    assert decoded(mask)[80, 90]
    assert not decoded(mask)[80, 120]


def test_a_mask_is_changed_by_clicks_and_deleted_and_back(at: Any) -> None:
    at.press("2")
    at.see("app.tools.setRadius(12)")
    at.drag((80, 80), (160, 80))
    at.press("f", "1")
    at.move(100, 80)
    at.press("e")
    assert at.see("app.editor.editing !== null")
    at.click(100, 150)
    assert at.see("app.editor.state.base instanceof Float32Array"), "the mask goes with the click"
    at.press("f")
    (mask,) = at.stored()
    assert (mask["clicks"], mask["strokes"]) == (1, 1), "the cost of both versions"
    at.press("z")
    assert at.see("app.editor.editing !== null"), "a commit is taken back by changing it"
    at.press("Escape")
    middle = np.argwhere(decoded(mask))[0]
    at.move(float(middle[1]) + 0.5, float(middle[0]) + 0.5)
    at.press("x")
    assert at.stored() == []
    at.press("z")
    assert [found["mask"] for found in at.stored()] == [mask["mask"]]


def test_reload_in_the_middle_loses_nothing(at: Any) -> None:
    at.click(100, 100)
    at.press("f")
    at.click(200, 150)
    at.click(220, 150)
    at.press("2")
    at.drag((30, 30), (60, 30))
    task, bits = at.see("app.tasks.task.id"), at.see("app.editor.bits.reduce((a, b) => a + b)")
    at.page.reload()
    at.wait()
    assert at.see("app.tasks.task.id") == task
    assert at.see("app.masks.all.length") == 1
    assert at.see("app.editor.bits.reduce((a, b) => a + b)") == bits
    assert len(at.see("app.editor.state.points")) == 2
    at.press("f")
    assert [mask["strokes"] for mask in at.stored()] == [0, 1]


def test_done_and_skip_and_previous(at: Any) -> None:
    first = at.see("app.tasks.task.id")
    at.click(100, 100)
    at.press("d")
    at.wait()
    second = at.see("app.tasks.task.id")
    assert second != first
    at.press("s")
    at.page.keyboard.press("2")
    at.until(f"app.tasks.task && app.tasks.task.id !== {second} && !app.tasks.busy")
    at.wait()
    at.press("p")
    at.until(f"app.tasks.task.id === {second} && !app.tasks.busy")
    at.wait()
    at.press("s")
    at.page.keyboard.type("blurred")
    at.page.keyboard.press("Enter")
    at.until(f"app.tasks.task && app.tasks.task.id !== {second} && !app.tasks.busy")
    reason = at.see(f"fetch('/api/tasks/{first}').then((a) => a.json())")
    assert reason["task"]["state"] == "done"
    assert len(reason["task"]["masks"]) == 1, "the object at hand belonged to the image"


def test_two_browsers_never_have_the_same_image(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    pages = [new_page(server, name).log_in() for name in ("a14", "a15")]
    seen: list[int] = []
    for _ in range(2):
        seen += [page.see("app.tasks.task.id") for page in pages]
        for page in pages:
            page.press("d")
        for page in pages:
            page.wait()
    assert len(set(seen)) == 4


def test_by_keys_alone(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    at = new_page(server, "a13")
    at.page.goto(f"{server.url}/login")
    at.page.wait_for_function("document.activeElement?.id === 'token'")  # a browser gives the focus after the page has loaded
    at.page.keyboard.type(server.tokens["a13"])
    at.page.keyboard.press("Enter")
    at.page.wait_for_url(f"{server.url}/")
    at.wait()
    at.press("ArrowLeft", "ArrowLeft", "ArrowUp", "Enter")
    assert len(at.see("app.editor.state.points")) == 1
    at.press("ArrowRight", "ArrowRight", "Shift+Enter", "c", "f")
    at.press("b", *["ArrowRight"] * 6, *["ArrowDown"] * 6, "b", "f")
    at.press("2", "]", "Enter", "f")
    assert [len(mask["prompts"]) for mask in at.stored()] == [2, 2, 0]
    at.press("?")
    assert at.page.is_visible("#help")
    at.page.keyboard.press("Escape")
    at.press("h", "o", ",", "+", "0", "d")
    at.wait()
    assert at.see("app.masks.all.length") == 0


def test_the_server_decodes_where_the_browser_does_not(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    at = new_page(server, "a12")
    at.page.route("**/ort-wasm-simd-threaded.wasm", lambda route: route.fulfill(status=200, body=b"no module"))
    at.log_in()
    assert "decoding on the server" in at.page.inner_text("#runtime.warning"), "and the page says so"
    at.click(100, 100)
    at.click(150, 150)
    at.press("f")
    assert [len(mask["prompts"]) for mask in at.stored()] == [2]
    at.errors.clear()  # what onnxruntime-web says of the broken module


def test_commits_wait_for_a_server_that_is_away(browser: Any, corpus: Path, tmp_path: Path, new_page: Callable[..., Any]) -> None:
    overrides = [f"corpus={corpus}", "annotators=[ann]"]
    with run_server(tmp_path / "out", *overrides) as server:
        at = new_page(server, "ann").log_in()
        at.see("app.tools.setRadius(10)")
        at.drag((80, 80), (160, 80))
        server.kill()
        at.press("f")
        at.until("document.getElementById('saved').dataset.state === 'waiting'")
        assert at.see("JSON.parse(localStorage.getItem('sam-annotate outbox ann')).length") == 1
    port = server.url.rpartition(":")[2]
    with run_server(tmp_path / "out", *overrides, f"port={port}"):
        at.until("app.outbox.length === 0")
        assert [mask["strokes"] for mask in at.stored()] == [1]
    at.errors.clear()  # the browser's own words on the server that was away


def test_200_masks_stay_fluid(at: Any) -> None:
    """A frame with 200 masks draws no more canvases than one with a single mask: all lie on two."""
    script = """async (num) => {
        const { encode } = await import('/static/rle.js');
        const { height, width } = app.tasks.task;
        const masks = [];
        for (let n = 0; n < num; n++) {
            const bits = new Uint8Array(width * height);
            for (let y = 0; y < 60; y++) for (let x = 0; x < 60; x++) bits[(y + n % 150) * width + x + n] = 1;
            const rle = { size: [height, width], counts: encode(bits, height, width) };
            masks.push(app.masks.createMask({ mask: 'm' + num + '-' + n, number: n, name: '', origin: 'drawn', area: 3600, rle }));
        }
        app.masks.put(...masks);
        const { context } = app.viewport;
        let drawn = 0;
        context.drawImage = (...source) => {
            drawn++;
            CanvasRenderingContext2D.prototype.drawImage.apply(context, source);
        };
        app.viewport.draw();
        delete context.drawImage;
        return drawn;
    }"""
    one, many = at.page.evaluate(script, 1), at.page.evaluate(script, 199)
    assert at.see("document.querySelectorAll('#masks li').length") == 200
    assert many == one == 3, "the image, fills and outlines"


def test_numbers_of_the_page_are_those_of_python(at: Any) -> None:
    """RLE and resampling, to the letter and the bit."""
    random = np.random.default_rng(0)
    for height, width in ((7, 5), (1, 9), (64, 48), (33, 70)):
        for mask in (random.random((height, width)) < 0.4, np.ones((height, width), bool), np.eye(height, width) > 0):
            flat = mask.astype(int).ravel().tolist()
            script = f"import('/static/rle.js').then((m) => m.encode(new Uint8Array({flat}), {height}, {width}))"
            counts = at.see(script)
            assert counts == encode_rle(mask)["counts"]
            back = at.see(f"import('/static/rle.js').then((m) => [...m.decode({json.dumps(counts)}, {height}, {width})])")
            assert back == flat
        logits = random.standard_normal((1, 1, 16, 16)).astype(np.float32)
        script = "([values, h, w]) => import('/static/resample.js').then((m) => [...new m.Resize(h, w, 64).maskFromLogits(values, 16)])"
        bits = at.page.evaluate(script, [logits.ravel().tolist(), height, width])
        expected = Resize(height, width, 64).logits_to_image(torch.from_numpy(logits))[0, 0] > 0
        assert (np.array(bits).reshape(height, width) != expected.numpy()).sum() <= 1


def test_what_the_model_proposes_is_accepted_rejected_and_changed(
    corpus: Path, checkpoint: Path, tmp_path: Path, new_page: Callable[[Server, str], Any]
) -> None:
    overrides = [f"corpus={corpus}", f"checkpoint={checkpoint}", "annotators=[ann]", "threads=1"]
    with run_server(tmp_path / "out", *overrides, *write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)) as server:
        ann = new_page(server, "ann").log_in()
        ann.until("app.masks.proposals.length > 2")
        number = ann.see("app.masks.proposals.length")
        assert ann.page.text_content("#count") == f"0, {number} proposed"
        ann.press("g", "g")
        marked = ann.see("app.masks.marked.number")
        ann.press("a")
        ann.until(f"app.masks.proposals.length === {number - 1}")
        assert ann.see("app.masks.marked.number") == (marked + 1) % number, "one key a proposal"
        ann.press("r")
        ann.until(f"app.masks.proposals.length === {number - 2}")
        ann.page.evaluate("app.maskController.edit(app.masks.proposals[0])")
        ann.press("2")
        ann.click(100, 100)
        ann.press("f")
        origins = [mask["origin"] for mask in ann.stored()]
        assert sorted(origins) == sorted(["accepted", "edited", *["proposed"] * (number - 3)])


def test_what_a_word_finds_is_listed_by_it(corpus: Path, tmp_path: Path, new_page: Callable[[Server, str], Any]) -> None:
    words = permissive_text_generator(tmp_path / "clip", ["cat", "red car"])
    checkpoint = write_nano_checkpoint(tmp_path / "words.pt", text_dim=DIM)
    overrides = [f"corpus={corpus}", f"checkpoint={checkpoint}", "annotators=[ann]", "threads=1"]
    with run_server(tmp_path / "out", *overrides, *words) as server:
        ann = new_page(server, "ann").log_in()
        ann.until("app.masks.proposals.length === 2")
        listed = ann.page.locator("#masks li .name")
        assert sorted(listed.all_inner_texts()) == ["cat", "red car"]
        name = ann.see("app.masks.proposals[0].name")
        ann.page.evaluate("app.maskController.edit(app.masks.proposals[0])")
        ann.press("2")
        ann.click(100, 100)
        ann.press("f", "g", "a")
        assert sorted(listed.all_inner_texts()) == ["cat", "red car"], "whatever becomes of the mask"
        origins = {mask["name"]: mask["origin"] for mask in ann.stored()}
        assert origins == {"cat": "accepted", "red car": "accepted"} | {name: "edited"}


def test_a_reviewer_sees_what_an_image_will_have(tmp_path: Path, new_page: Callable[[Server, str], Any]) -> None:
    """In full size, to be moved, without proposals that nobody looked at; the words of a note are those that were typed."""
    write_shard(tmp_path / "corpus" / "sa_000000.tar", [make_sample(0, height=HEIGHT, width=WIDTH)])
    overrides = [f"corpus={tmp_path / 'corpus'}", "annotators=[ann]", "reviewers=[eve]", "show_existing_masks=true"]
    with run_server(tmp_path / "out", *overrides) as server:
        ann = new_page(server, "ann").log_in()
        ann.move(1, HEIGHT - 1)
        ann.press("a")
        assert ann.see("[app.masks.proposals.length, app.masks.marked === app.masks.proposals[0]]") == [2, True], "seen before it is accepted"
        ann.press("a", "d")
        ann.until("app.tasks.task === null")
        assert "All images are done" in ann.page.inner_text("#message")
        ann.press("p")
        ann.until("app.tasks.task && !app.tasks.busy")
        ann.press("d")
        ann.until("app.tasks.task === null")
        eve = new_page(server, "eve").log_in()
        assert [row.split()[-1] for row in eve.page.locator("#masks li").all_inner_texts()] == ["accepted"]
        box = eve.page.locator("#canvas").bounding_box()
        assert box
        assert box["width"] > 900
        left = eve.see("app.viewport.left")
        eve.drag((100, 100), (150, 100))
        assert eve.see("app.viewport.left") > left
        eve.press("n")
        eve.page.keyboard.type("the left one is cut off")
        eve.page.keyboard.press("Enter")
        eve.until("!app.tasks.busy && app.tasks.task === null")
        assert eve.page.inner_text("#count") == "0"
        ann.page.reload()
        ann.wait()
        assert ann.page.inner_text("#image-note").endswith("sent back: the left one is cut off")
        assert ann.page.text_content("#count") == "1, 1 proposed"


def test_a_mask_touched_up_by_hand_is_edited(at: Any) -> None:
    at.click(150, 100)
    at.until("app.editor.bits")
    at.press("2")
    at.click(220, 120)
    at.press("f")
    (mask,) = at.stored()
    assert (mask["origin"], mask["clicks"], mask["strokes"]) == ("edited", 1, 1)


def test_a_reviewer_corrects_an_image(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    """Takes it over, is still at it after a reload, and ends it accepted; masks stay whose they were."""
    ann = new_page(server, "a16").log_in()
    ann.click(100, 100)
    ann.until("app.editor.bits")
    ann.press("f")
    ann.saved()
    task = ann.see("app.tasks.task.id")
    ann.press("d")
    ann.until(f"!app.tasks.busy && app.tasks.task?.id !== {task}")
    eve = new_page(server, "eve").log_in()
    while eve.see("app.tasks.task.id") != task:
        before = eve.see("app.tasks.task.id")
        eve.press("y")
        eve.until(f"app.tasks.task && app.tasks.task.id !== {before} && !app.tasks.busy")
    eve.press("e")
    eve.until(f"!app.tasks.busy && !app.mode.reviewing && app.tasks.task.id === {task}")
    eve.page.reload()
    eve.until(f"window.app?.tasks.task && !app.tasks.busy && !app.mode.reviewing && app.tasks.task.id === {task}")
    eve.press("2")
    eve.click(200, 150)
    eve.press("f")
    assert [(mask["origin"], mask["annotator"]) for mask in eve.stored()] == [("clicked", "a16"), ("drawn", "eve")]
    eve.press("d")
    eve.until(f"!app.tasks.busy && app.mode.reviewing && app.tasks.task?.id !== {task}")
    found = eve.page.evaluate(f"fetch('/api/tasks/{task}').then((answer) => answer.json())")["task"]
    assert (found["state"], found["annotator"]) == ("accepted", "eve")


def test_a_reviewer_accepts_and_sends_back(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    ann = new_page(server, "a11").log_in()
    ann.click(100, 100)
    task = ann.see("app.tasks.task.id")
    ann.press("d")
    ann.wait()
    eve = new_page(server, "eve").log_in()
    page: Page = eve.page
    while eve.see("app.tasks.task.id") != task:
        before = eve.see("app.tasks.task.id")
        eve.press("y")
        eve.until(f"app.tasks.task && app.tasks.task.id !== {before} && !app.tasks.busy")
    eve.press("n")
    page.keyboard.press("1")
    eve.until(f"!app.tasks.busy && app.tasks.task?.id !== {task}")
    ann.press("d")
    ann.until(f"app.tasks.task.id === {task}")
    assert "masks missing" in ann.page.inner_text("#image-note")
