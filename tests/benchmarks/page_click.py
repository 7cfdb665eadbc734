"""Latency from a click to its mask in the page, compared with the released demo in the same browser.

    python tests/benchmarks/page_click.py CHECKPOINT [ROUNDS]

prints one line of JSON: median and 95th percentile of both in milliseconds, on an image of 1024 x 1024, measured alternately, and
the speed ratio. Page: decoder in a worker, then the best of three masks resampled to the image. Demo: segment_anything's
SamOnnxModel (one mask at image resolution) in the same onnxruntime-web with as many threads, then thresholded at 0. CHECKPOINT is
a model with the sizes of the released decoder (a grid of 64 x 64, 256 channels).
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import make_sample
from onnx_decoder import write_models
from server_fixtures import Server, run_server

from sam_train.shards import write_shard

SIDE, LIMIT_MS = 1024, 600_000
OPEN_DEMO = """async (text) => {
    const ort = await import("/static/ort/ort.wasm.min.mjs");
    ort.env.wasm.wasmPaths = `${location.origin}/static/ort/`;
    ort.env.wasm.numThreads = Math.min(4, navigator.hardwareConcurrency || 1);
    ort.env.logLevel = "error";
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    window.demo = await ort.InferenceSession.create(bytes, { graphOptimizationLevel: "all" });
    window.ort = ort;
}"""
CLICK = """async ([x, y, side]) => {
    const tensor = (values, shape) => new ort.Tensor("float32", values, shape);
    const feeds = {
        image_embeddings: tensor(new Float32Array(256 * 64 * 64).fill(0.1), [1, 256, 64, 64]),
        point_coords: tensor(new Float32Array([x, y, 0, 0]), [1, 2, 2]),
        point_labels: tensor(new Float32Array([1, -1]), [1, 2]),
        mask_input: tensor(new Float32Array(256 * 256), [1, 1, 256, 256]),
        has_mask_input: tensor(new Float32Array([0]), [1]),
        orig_im_size: tensor(new Float32Array([side, side]), [2]),
    };
    let started = performance.now();
    const points = [{ x, y, label: 1 }];
    const { scores, logits, gridSize } = await app.decoder.decode({ points, box: null, mask: null, multimask: true });
    const { Resize } = await import("/static/resample.js");
    const resize = new Resize(side, side, app.decoder.imageSize);
    const mask = resize.maskFromLogits(logits, gridSize, scores.indexOf(Math.max(...scores)) * gridSize * gridSize);
    const pageTook = performance.now() - started;
    started = performance.now();
    const { masks } = await demo.run(feeds);
    const demoMask = Uint8Array.from(masks.data, (value) => value > 0);
    const demoTook = performance.now() - started;
    if (mask.length !== side * side || demoMask.length !== side * side)
        throw new Error(`${mask.length} and ${demoMask.length} pixels`);
    return [pageTook, demoTook];
}"""


def measure(page: Page, server: Server, demo: bytes, rounds: int) -> np.ndarray:
    """Return latencies of page and demo in milliseconds, rounds x 2."""
    page.set_default_timeout(LIMIT_MS)
    page.goto(f"{server.url}/login")
    page.fill("#token", server.tokens["a"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{server.url}/")
    while not page.evaluate("Boolean(window.app?.tasks.task && !app.tasks.busy && app.decoder?.ready)"):
        page.wait_for_timeout(200)
    assert page.evaluate("Boolean(app.decoder.usesWorker)"), page.inner_text("#runtime")
    page.evaluate(OPEN_DEMO, base64.b64encode(demo).decode())
    points = np.random.default_rng(0).uniform(50, SIDE - 50, (rounds + 2, 2)).tolist()
    return np.array([page.evaluate(CLICK, [x, y, SIDE]) for x, y in points])[2:]  # the first two warm up


def main(checkpoint: str, rounds: str = "30") -> None:
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_shard(folder / "corpus" / "sa_000000.tar", [make_sample(0, height=SIDE, width=SIDE)])
        demo = next(path for path in write_models(folder, single=True) if path.stem == "theirs").read_bytes()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        overrides = [f"corpus={folder / 'corpus'}", f"checkpoint={checkpoint}", "annotators=[a]", "threads=1", "num_prefetch=0"]
        with run_server(folder / "out", *overrides) as server:
            latencies = measure(browser.new_page(), server, demo, int(rounds))
        browser.close()
    figures: dict[str, Any] = {
        "speed_ratio": round(float(np.median(latencies[:, 1]) / np.median(latencies[:, 0])), 2),
        "rounds": len(latencies),
    }
    for column, name in enumerate(("page_ms", "demo_ms")):
        figures[name] = {
            "median": round(float(np.median(latencies[:, column])), 1),
            "p95": round(float(np.percentile(latencies[:, column], 95)), 1),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
