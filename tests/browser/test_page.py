"""Annotation and review with mouse and keyboard in a real browser, checked by what the server stores."""

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
from sam_train.masks import stability_score
from sam_train.rle import decode_rle, encode_rle
from sam_train.shards import write_shard

pytestmark = pytest.mark.slow
HEIGHT, WIDTH = 240, 320


def decode_mask(mask: dict[str, Any]) -> np.ndarray:
    return decode_rle(mask["rle"], height=HEIGHT, width=WIDTH)


def test_decodes_in_the_browser_with_threads(annotator: Any) -> None:
    assert annotator.evaluate("crossOriginIsolated") is True
    assert "in the browser" in annotator.page.inner_text("#runtime")


def test_hover_click_remove_cycle_commit(annotator: Any) -> None:
    annotator.move(100, 100)
    annotator.until("app.preview.layers !== null")
    annotator.click(100, 100)
    assert annotator.evaluate("app.editor.state.prediction.numMasks") == 3
    assert annotator.evaluate("app.preview.layers === null")
    choice = annotator.evaluate("app.editor.state.choice")
    annotator.press("c")
    assert annotator.evaluate("app.editor.state.choice") == (choice + 1) % 3
    annotator.press("Shift+C")
    assert annotator.evaluate("app.editor.state.choice") == choice
    annotator.click(250, 200, button="right")
    annotator.click(40, 30)
    assert annotator.evaluate("app.editor.state.points.map((p) => p.label)") == [1, 0, 1]
    assert annotator.evaluate("app.editor.state.prediction.numMasks") == 1, "not ambiguous any more"
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    assert [prompt[2] for prompt in mask["prompts"]] == [1, 0, 1]
    np.testing.assert_allclose([prompt[:2] for prompt in mask["prompts"]], [[100, 100], [250, 200], [40, 30]], atol=1)
    assert (mask["origin"], mask["clicks"], mask["strokes"]) == ("clicked", 3, 0)
    assert annotator.evaluate("app.editor.isEmpty")


def test_mask_equals_the_prediction_of_torch(annotator: Any, checkpoint: Path) -> None:
    """Compare embedding, ONNX in WebAssembly, resampling and RLE of the page with the predictor."""
    from sam_train.inference import load_predictor
    from sam_train.inference.prompt_arrays import make_prompts
    from sam_train.shards import decode_jpeg

    annotator.click(120, 90)
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    jpeg = bytes(
        annotator.evaluate(
            "fetch(`/api/tasks/${app.tasks.task.id}/image`).then((a) => a.arrayBuffer()).then((b) => [...new Uint8Array(b)])"
        )
    )
    predictor = load_predictor(checkpoint)
    predictor.set_image(decode_jpeg(jpeg, shard="", key=""))
    point = np.array([mask["prompts"][0][:2]])
    prediction = predictor.predict_prompts(make_prompts(points_xy=point), multimask_output=True).best()
    expected = predictor.masks_to_image(prediction.mask_logits)[0, 0].numpy()
    assert (decode_mask(mask) != expected).mean() < 2e-3
    assert mask["predicted_iou"] == pytest.approx(float(prediction.iou_scores[0, 0]), abs=2e-3)


def test_moves_and_deletes_points_and_draws_a_box(annotator: Any) -> None:
    annotator.click(100, 100)
    annotator.drag((100, 100), (150, 120))
    (point,) = annotator.evaluate("app.editor.state.points")
    assert (round(point["x"]), round(point["y"])) == (150, 120)
    annotator.click(150, 120, button="right")
    assert annotator.evaluate("app.editor.isEmpty"), "a right click on a point deletes it"
    annotator.drag((60, 60), (200, 180))
    np.testing.assert_allclose(annotator.evaluate("app.editor.state.box"), [60, 60, 200, 180], atol=1)
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    assert [prompt[2] for prompt in mask["prompts"]] == [2, 3]


def test_brush_erase_undo_redo(annotator: Any) -> None:
    annotator.press("2")
    annotator.evaluate("app.tools.setRadius(10)")
    annotator.drag((80, 80), (160, 80))
    painted = annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)")
    assert painted == pytest.approx(80 * 20 + np.pi * 100, rel=0.05)
    annotator.press("3")
    annotator.drag((120, 40), (120, 120))
    erased = annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)")
    assert erased == pytest.approx(painted - 400, rel=0.1)
    annotator.press("z")
    assert annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)") == painted
    annotator.press("y")
    assert annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)") == erased
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    assert (mask["origin"], mask["strokes"], mask["clicks"], mask["area"]) == ("drawn", 2, 0, erased)
    assert decode_mask(mask)[80, 90]
    assert not decode_mask(mask)[80, 120]


def test_edits_deletes_and_restores_a_mask(annotator: Any) -> None:
    annotator.press("2")
    annotator.evaluate("app.tools.setRadius(12)")
    annotator.drag((80, 80), (160, 80))
    annotator.press("f", "1")
    annotator.move(100, 80)
    annotator.press("e")
    assert annotator.evaluate("app.editor.editing !== null")
    annotator.click(100, 150)
    assert annotator.evaluate("app.editor.state.base instanceof Float32Array"), "the mask is the mask prompt of the click"
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    assert (mask["clicks"], mask["strokes"]) == (1, 1), "the cost of both versions"
    annotator.press("z")
    assert annotator.evaluate("app.editor.editing !== null"), "undo of a commit edits the mask"
    annotator.press("Escape")
    middle = np.argwhere(decode_mask(mask))[0]
    annotator.move(float(middle[1]) + 0.5, float(middle[0]) + 0.5)
    annotator.press("x")
    assert annotator.stored_masks() == []
    annotator.press("z")
    assert [found["mask"] for found in annotator.stored_masks()] == [mask["mask"]]


def test_reload_restores_the_unfinished_mask(annotator: Any) -> None:
    annotator.click(100, 100)
    annotator.press("f")
    annotator.click(200, 150)
    annotator.click(220, 150)
    annotator.press("2")
    annotator.drag((30, 30), (60, 30))
    task, bits = annotator.evaluate("app.tasks.task.id"), annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)")
    annotator.page.reload()
    annotator.wait()
    assert annotator.evaluate("app.tasks.task.id") == task
    assert annotator.evaluate("app.masks.all.length") == 1
    assert annotator.evaluate("app.editor.bits.reduce((a, b) => a + b)") == bits
    assert len(annotator.evaluate("app.editor.state.points")) == 2
    annotator.press("f")
    assert [mask["strokes"] for mask in annotator.stored_masks()] == [0, 1]


def test_done_and_skip_and_previous(annotator: Any) -> None:
    first = annotator.evaluate("app.tasks.task.id")
    annotator.click(100, 100)
    annotator.press("d")
    annotator.wait()
    second = annotator.evaluate("app.tasks.task.id")
    assert second != first
    annotator.press("s")
    annotator.page.keyboard.press("2")
    annotator.until(f"app.tasks.task && app.tasks.task.id !== {second} && !app.tasks.busy")
    annotator.wait()
    annotator.press("p")
    annotator.until(f"app.tasks.task.id === {second} && !app.tasks.busy")
    annotator.wait()
    annotator.press("s")
    annotator.page.keyboard.type("blurred")
    annotator.page.keyboard.press("Enter")
    annotator.until(f"app.tasks.task && app.tasks.task.id !== {second} && !app.tasks.busy")
    reason = annotator.evaluate(f"fetch('/api/tasks/{first}').then((a) => a.json())")
    assert reason["task"]["state"] == "done"
    assert len(reason["task"]["masks"]) == 1, "the unfinished mask was committed with the image"


def test_two_annotators_never_have_the_same_image(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    pages = [new_page(server, name).log_in() for name in ("a14", "a15")]
    task_ids: list[int] = []
    for _ in range(2):
        task_ids += [page.evaluate("app.tasks.task.id") for page in pages]
        for page in pages:
            page.press("d")
        for page in pages:
            page.wait()
    assert len(set(task_ids)) == 4


def test_annotates_with_the_keyboard_alone(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    annotator = new_page(server, "a13")
    annotator.page.goto(f"{server.url}/login")
    annotator.page.wait_for_function(
        "document.activeElement?.id === 'token'"
    )  # the browser sets the focus after the page has loaded
    annotator.page.keyboard.type(server.tokens["a13"])
    annotator.page.keyboard.press("Enter")
    annotator.page.wait_for_url(f"{server.url}/")
    annotator.wait()
    annotator.press("ArrowLeft", "ArrowLeft", "ArrowUp", "Enter")
    assert len(annotator.evaluate("app.editor.state.points")) == 1
    annotator.press("ArrowRight", "ArrowRight", "Shift+Enter", "c", "f")
    annotator.press("b", *["ArrowRight"] * 6, *["ArrowDown"] * 6, "b", "f")
    annotator.press("2", "]", "Enter", "f")
    assert [len(mask["prompts"]) for mask in annotator.stored_masks()] == [2, 2, 0]
    annotator.press("?")
    assert annotator.page.is_visible("#help")
    annotator.page.keyboard.press("Escape")
    annotator.press("h", "o", ",", "+", "0", "d")
    annotator.wait()
    assert annotator.evaluate("app.masks.all.length") == 0


def test_server_decodes_if_the_browser_cannot(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    annotator = new_page(server, "a12")
    annotator.page.route("**/ort-wasm-simd-threaded.wasm", lambda route: route.fulfill(status=200, body=b"no module"))
    annotator.log_in()
    assert "decoding on the server" in annotator.page.inner_text("#runtime.warning")
    annotator.click(100, 100)
    annotator.click(150, 150)
    annotator.press("f")
    assert [len(mask["prompts"]) for mask in annotator.stored_masks()] == [2]
    annotator.errors.clear()  # errors of onnxruntime-web about the broken module


def test_commits_wait_until_the_server_is_back(browser: Any, corpus: Path, tmp_path: Path, new_page: Callable[..., Any]) -> None:
    overrides = [f"corpus={corpus}", "annotators=[ann]"]
    with run_server(tmp_path / "out", *overrides) as server:
        annotator = new_page(server, "ann").log_in()
        annotator.evaluate("app.tools.setRadius(10)")
        annotator.drag((80, 80), (160, 80))
        server.kill()
        annotator.press("f")
        annotator.until("document.getElementById('saved').dataset.state === 'waiting'")
        assert annotator.evaluate("JSON.parse(localStorage.getItem('sam-annotate outbox ann')).length") == 1
    port = server.url.rpartition(":")[2]
    with run_server(tmp_path / "out", *overrides, f"port={port}"):
        annotator.until("app.outbox.length === 0")
        assert [mask["strokes"] for mask in annotator.stored_masks()] == [1]
    annotator.errors.clear()  # the browser's errors while the server was down


def test_drawing_200_masks_costs_as_much_as_drawing_one(annotator: Any) -> None:
    """A frame with 200 masks draws as many canvases as one with a single mask."""
    script = """async (num) => {
        const { encode } = await import('/static/rle.js');
        const { height, width } = app.tasks.task;
        const masks = [];
        for (let n = 0; n < num; n++) {
            const bits = new Uint8Array(width * height);
            for (let y = 0; y < 60; y++) for (let x = 0; x < 60; x++) bits[(y + n % 150) * width + x + n] = 1;
            const rle = { size: [height, width], counts: encode(bits, height, width) };
            const mask = { mask: 'm' + num + '-' + n, number: n, name: '', origin: 'drawn', area: 3600, rle };
            masks.push(app.masks.createMask(mask));
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
    one, many = annotator.page.evaluate(script, 1), annotator.page.evaluate(script, 199)
    assert annotator.evaluate("document.querySelectorAll('#masks li').length") == 200
    assert many == one == 3, "one canvas each: image, fills, contours"


def test_rle_resampling_and_stability_equal_those_of_python(annotator: Any) -> None:
    """RLE is equal; resampled masks and those of the stability score differ in at most one pixel."""
    random = np.random.default_rng(0)
    for height, width in ((7, 5), (1, 9), (64, 48), (33, 70)):
        for mask in (random.random((height, width)) < 0.4, np.ones((height, width), bool), np.eye(height, width) > 0):
            flat = mask.astype(int).ravel().tolist()
            script = f"import('/static/rle.js').then((m) => m.encode(new Uint8Array({flat}), {height}, {width}))"
            counts = annotator.evaluate(script)
            assert counts == encode_rle(mask)["counts"]
            decoded = annotator.evaluate(
                f"import('/static/rle.js').then((m) => [...m.decode({json.dumps(counts)}, {height}, {width})])"
            )
            assert decoded == flat
        logits = random.standard_normal((1, 1, 16, 16)).astype(np.float32)
        script = "([v, h, w]) => import('/static/resample.js').then((m) => [...new m.Resize(h, w, 64).maskFromLogits(v, 16)])"
        bits = annotator.page.evaluate(script, [logits.ravel().tolist(), height, width])
        expected = Resize(height, width, 64).logits_to_image(torch.from_numpy(logits))[0, 0]
        assert (np.array(bits).reshape(height, width) != (expected > 0).numpy()).sum() <= 1
        script = "([v, h, w]) => import('/static/resample.js').then((m) => new m.Resize(h, w, 64).stabilityScore(v, 16))"
        score = annotator.page.evaluate(script, [logits.ravel().tolist(), height, width])
        assert score == pytest.approx(float(stability_score(expected)), abs=1.5 / float((expected > -1).sum()))


def test_accepts_rejects_and_edits_proposed_masks(
    corpus: Path, checkpoint: Path, tmp_path: Path, new_page: Callable[[Server, str], Any]
) -> None:
    overrides = [f"corpus={corpus}", f"checkpoint={checkpoint}", "annotators=[ann]", "threads=1"]
    with run_server(tmp_path / "out", *overrides, *write_permissive_proposer(tmp_path / "proposer.pt", checkpoint)) as server:
        ann = new_page(server, "ann").log_in()
        ann.until("app.masks.proposals.length > 2")
        number = ann.evaluate("app.masks.proposals.length")
        assert ann.page.text_content("#count") == f"0, {number} proposed"
        ann.press("g", "g")
        marked = ann.evaluate("app.masks.marked.number")
        ann.press("a")
        ann.until(f"app.masks.proposals.length === {number - 1}")
        assert ann.evaluate("app.masks.marked.number") == (marked + 1) % number, "accepting marks the next proposal"
        ann.press("r")
        ann.until(f"app.masks.proposals.length === {number - 2}")
        ann.page.evaluate("app.maskController.edit(app.masks.proposals[0])")
        ann.press("2")
        ann.click(100, 100)
        ann.press("f")
        origins = [mask["origin"] for mask in ann.stored_masks()]
        assert sorted(origins) == sorted(["accepted", "edited", *["proposed"] * (number - 3)])


def test_lists_masks_by_their_text_prompt(corpus: Path, tmp_path: Path, new_page: Callable[[Server, str], Any]) -> None:
    generator = permissive_text_generator(tmp_path / "clip", ["cat", "red car"])
    checkpoint = write_nano_checkpoint(tmp_path / "text.pt", text_dim=DIM)
    overrides = [f"corpus={corpus}", f"checkpoint={checkpoint}", "annotators=[ann]", "threads=1"]
    with run_server(tmp_path / "out", *overrides, *generator) as server:
        ann = new_page(server, "ann").log_in()
        ann.until("app.masks.proposals.length === 2")
        listed = ann.page.locator("#masks li .name")
        assert sorted(listed.all_inner_texts()) == ["cat", "red car"]
        name = ann.evaluate("app.masks.proposals[0].name")
        ann.page.evaluate("app.maskController.edit(app.masks.proposals[0])")
        ann.press("2")
        ann.click(100, 100)
        ann.press("f", "g", "a")
        assert sorted(listed.all_inner_texts()) == ["cat", "red car"], "the name stays when the mask changes"
        origins = {mask["name"]: mask["origin"] for mask in ann.stored_masks()}
        assert origins == {"cat": "accepted", "red car": "accepted"} | {name: "edited"}


def test_reviewer_sees_only_masks_that_will_be_exported(tmp_path: Path, new_page: Callable[[Server, str], Any]) -> None:
    """The reviewer can pan the image, sees no unreviewed proposals, and sends it back with a note."""
    write_shard(tmp_path / "corpus" / "sa_000000.tar", [make_sample(0, height=HEIGHT, width=WIDTH)])
    overrides = [f"corpus={tmp_path / 'corpus'}", "annotators=[ann]", "reviewers=[eve]", "show_existing_masks=true"]
    with run_server(tmp_path / "out", *overrides) as server:
        ann = new_page(server, "ann").log_in()
        ann.move(1, HEIGHT - 1)
        ann.press("a")
        assert ann.evaluate("[app.masks.proposals.length, app.masks.marked === app.masks.proposals[0]]") == [2, True], (
            "the first key press only marks a proposal"
        )
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
        left = eve.evaluate("app.viewport.left")
        eve.drag((100, 100), (150, 100))
        assert eve.evaluate("app.viewport.left") > left
        eve.press("n")
        eve.page.keyboard.type("the left one is cut off")
        eve.page.keyboard.press("Enter")
        eve.until("!app.tasks.busy && app.tasks.task === null")
        assert eve.page.inner_text("#count") == "0"
        ann.page.reload()
        ann.wait()
        assert ann.page.inner_text("#image-note").endswith("sent back: the left one is cut off")
        assert ann.page.text_content("#count") == "1, 1 proposed"


def test_painting_on_a_predicted_mask_makes_it_edited(annotator: Any) -> None:
    annotator.click(150, 100)
    annotator.until("app.editor.bits")
    annotator.press("2")
    annotator.click(220, 120)
    annotator.press("f")
    (mask,) = annotator.stored_masks()
    assert (mask["origin"], mask["clicks"], mask["strokes"]) == ("edited", 1, 1)


def test_reviewer_corrects_an_image(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    """The correction continues after a reload and ends as accepted; masks keep their annotators."""
    ann = new_page(server, "a16").log_in()
    ann.click(100, 100)
    ann.until("app.editor.bits")
    ann.press("f")
    ann.wait_until_saved()
    task = ann.evaluate("app.tasks.task.id")
    ann.press("d")
    ann.until(f"!app.tasks.busy && app.tasks.task?.id !== {task}")
    eve = new_page(server, "eve").log_in()
    while eve.evaluate("app.tasks.task.id") != task:
        before = eve.evaluate("app.tasks.task.id")
        eve.press("y")
        eve.until(f"app.tasks.task && app.tasks.task.id !== {before} && !app.tasks.busy")
    eve.press("e")
    eve.until(f"!app.tasks.busy && !app.mode.reviewing && app.tasks.task.id === {task}")
    eve.page.reload()
    eve.until(f"window.app?.tasks.task && !app.tasks.busy && !app.mode.reviewing && app.tasks.task.id === {task}")
    eve.press("2")
    eve.click(200, 150)
    eve.press("f")
    assert [(mask["origin"], mask["annotator"]) for mask in eve.stored_masks()] == [("clicked", "a16"), ("drawn", "eve")]
    eve.press("d")
    eve.until(f"!app.tasks.busy && app.mode.reviewing && app.tasks.task?.id !== {task}")
    stored = eve.page.evaluate(f"fetch('/api/tasks/{task}').then((answer) => answer.json())")["task"]
    assert (stored["state"], stored["annotator"]) == ("accepted", "eve")


def test_reviewer_accepts_and_sends_back(server: Server, new_page: Callable[[Server, str], Any]) -> None:
    ann = new_page(server, "a11").log_in()
    ann.click(100, 100)
    task = ann.evaluate("app.tasks.task.id")
    ann.press("d")
    ann.wait()
    eve = new_page(server, "eve").log_in()
    page: Page = eve.page
    while eve.evaluate("app.tasks.task.id") != task:
        before = eve.evaluate("app.tasks.task.id")
        eve.press("y")
        eve.until(f"app.tasks.task && app.tasks.task.id !== {before} && !app.tasks.busy")
    eve.press("n")
    page.keyboard.press("1")
    eve.until(f"!app.tasks.busy && app.tasks.task?.id !== {task}")
    ann.press("d")
    ann.until(f"app.tasks.task.id === {task}")
    assert "masks missing" in ann.page.inner_text("#image-note")
