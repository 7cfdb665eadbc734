"""A real Chromium, headless, at a server of ours."""

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
ANNOTATORS = [f"a{number}" for number in range(17)]


class Annotating:
    """A page, and what the tests do with it. Its script may not evaluate texts, so waiting is done from here."""

    def __init__(self, page: Page, server: Server, annotator: str) -> None:
        self.page, self.server, self.annotator = page, server, annotator
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))

    def log_in(self) -> Annotating:
        self.page.goto(f"{self.server.url}/login")
        self.page.fill("#token", self.server.tokens[self.annotator])
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"{self.server.url}/")
        return self.wait()

    def wait(self) -> Annotating:
        """Until there is an image and its embedding, and nothing is under way."""
        self.until("window.app?.tasks.task && !app.tasks.busy && app.viewport.image && (!app.decoder || app.mode.reviewing || app.decoder.ready)")
        return self

    def until(self, script: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not self.page.evaluate(script):
            assert time.monotonic() < end, f"still not: {script}; message: {self.page.inner_text('#message')!r}; {self.errors}"
            time.sleep(0.05)

    def see(self, script: str) -> Any:
        return self.page.evaluate(script)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """From the image to the screen."""
        at = self.see(f"app.viewport.toScreen({x}, {y})")
        box = self.page.locator("#canvas").bounding_box()
        assert box
        return box["x"] + at["x"], box["y"] + at["y"]

    def move(self, x: float, y: float) -> None:
        self.page.mouse.move(*self.place(x, y))

    def click(self, x: float, y: float, **how: Any) -> None:
        self.page.mouse.click(*self.place(x, y), **how)
        self.settle()

    def drag(self, a: tuple[float, float], b: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*a))
        self.page.mouse.down()
        self.page.mouse.move(*self.place((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))
        self.page.mouse.move(*self.place(*b))
        self.page.mouse.up()
        self.settle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        self.until("!app.prompts.busy && !app.preview.busy")

    def saved(self) -> None:
        self.until("app.outbox.length === 0")

    def stored(self) -> list[dict[str, Any]]:
        """The masks of the image as the server has them."""
        self.saved()
        script = "app.tasks.task && fetch('/api/tasks/' + app.tasks.task.id).then((a) => a.json()).then((a) => a.task.masks)"
        masks: list[dict[str, Any]] = self.page.evaluate(script)
        return masks


def _chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    message = "needs Chromium (Debian: apt-get install chromium); it is not there"
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
def new_page(browser: Browser) -> Iterator[Callable[[Server, str], Annotating]]:
    """Pages in browsers of their own: no cookie and no storage in common. None may have said an error when the test ends."""
    contexts: list[BrowserContext] = []
    pages: list[Annotating] = []

    def made(server: Server, annotator: str) -> Annotating:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}))
        pages.append(Annotating(contexts[-1].new_page(), server, annotator))
        return pages[-1]

    yield made
    for context in contexts:
        context.close()
    assert [error for page in pages for error in page.errors] == []


_names = iter(ANNOTATORS)


@pytest.fixture
def at(server: Server, new_page: Callable[[Server, str], Annotating]) -> Annotating:
    """Logged in as somebody whom no other test is, at an image that nobody else has."""
    return new_page(server, next(_names)).log_in()
