"""Headless Chromium on the page of a running annotation server."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_sample
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from server_fixtures import Server, run_server, write_nano_checkpoint

from sam_train.shards import write_shard

HEIGHT, WIDTH, NUM_IMAGES = 240, 320, 36
READY = """window.app?.tasks.task && !app.tasks.busy && app.viewport.image
    && (!app.decoder || app.mode.reviewing || app.decoder.ready)"""
ANNOTATORS = [f"a{number}" for number in range(17)]


class AnnotationPage:
    """A browser page with the operations of the tests.

    The page's Content-Security-Policy forbids `wait_for_function`, so waiting polls from here.
    """

    def __init__(self, page: Page, server: Server, annotator: str) -> None:
        self.page, self.server, self.annotator = page, server, annotator
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))

    def log_in(self) -> AnnotationPage:
        self.page.goto(f"{self.server.url}/login")
        self.page.fill("#token", self.server.tokens[self.annotator])
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"{self.server.url}/")
        return self.wait()

    def wait(self) -> AnnotationPage:
        """Wait until an image and its embedding are loaded and no request is pending."""
        self.until(READY)
        return self

    def until(self, script: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not self.page.evaluate(script):
            assert time.monotonic() < end, f"timeout: {script}; message: {self.page.inner_text('#message')!r}; {self.errors}"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)

    def to_screen(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the image to the screen."""
        at = self.evaluate(f"app.viewport.toScreen({x}, {y})")
        box = self.page.locator("#canvas").bounding_box()
        assert box
        return box["x"] + at["x"], box["y"] + at["y"]

    def move(self, x: float, y: float) -> None:
        self.page.mouse.move(*self.to_screen(x, y))

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.click(*self.to_screen(x, y), **options)
        self.wait_for_decoder()

    def drag(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        self.page.mouse.move(*self.to_screen(*a))
        self.page.mouse.down()
        self.page.mouse.move(*self.to_screen((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))
        self.page.mouse.move(*self.to_screen(*b))
        self.page.mouse.up()
        self.wait_for_decoder()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.wait_for_decoder()

    def wait_for_decoder(self) -> None:
        self.until("!app.prompts.busy && !app.preview.busy")

    def wait_until_saved(self) -> None:
        self.until("app.outbox.length === 0")

    def stored_masks(self) -> list[dict[str, Any]]:
        """Return the masks of the image as the server stores them."""
        self.wait_until_saved()
        script = "app.tasks.task && fetch('/api/tasks/' + app.tasks.task.id).then((a) => a.json()).then((a) => a.task.masks)"
        masks: list[dict[str, Any]] = self.page.evaluate(script)
        return masks


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    message = "Chromium is not installed (Debian: apt-get install chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = _chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    samples = [make_sample(index, height=HEIGHT, width=WIDTH) for index in range(NUM_IMAGES)]
    write_shard(folder / "sa_000000.tar", samples)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_checkpoint(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def server(browser: Browser, corpus: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = ",".join(ANNOTATORS)
    overrides = [f"corpus={corpus}", f"checkpoint={checkpoint}", f"annotators=[{names}]", "reviewers=[eve]", "threads=1"]
    with run_server(tmp_path_factory.mktemp("out"), *overrides) as server:
        yield server


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[[Server, str], AnnotationPage]]:
    """Open pages in separate browser contexts. The test fails if a page reports an error."""
    contexts: list[BrowserContext] = []
    pages: list[AnnotationPage] = []

    def open_page(server: Server, annotator: str) -> AnnotationPage:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}))
        pages.append(AnnotationPage(contexts[-1].new_page(), server, annotator))
        return pages[-1]

    yield open_page
    for context in contexts:
        context.close()
    assert [error for page in pages for error in page.errors] == []


_names = iter(ANNOTATORS)


@pytest.fixture
def annotator(server: Server, new_page: Callable[[Server, str], AnnotationPage]) -> AnnotationPage:
    """Return a page of an annotator and with an image that no other test uses."""
    return new_page(server, next(_names)).log_in()
