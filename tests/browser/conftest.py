"""A real Chromium, driven by playwright. Where there is none, the tests are skipped and say how to get it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 300_000  # MLflow's UI takes two minutes on a loaded machine


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    """One browser for all tests."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium here: `apt-get install chromium` (`make test` does that where it may)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `pip install -e .[dev]`"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS), timeout=PATIENCE_MS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, and what happened on it: requests to elsewhere, and errors."""

    page: "Page"
    allowed: str  # what addresses begin with
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", self._request)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.allowed, "data:", "blob:")):
            self.elsewhere.append(request.url)


@pytest.fixture
def visit(chromium: "Browser") -> Iterator[Callable[..., Visit]]:
    """Opens pages: visit(url, width=..., dark=...)."""
    contexts = []

    def go(url: str, allowed: str, width: int = 1180, height: int = 900, dark: bool = False) -> Visit:
        scheme: Any = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        opened = Visit(context.new_page(), allowed)
        opened.page.goto(url, timeout=PATIENCE_MS)
        return opened

    yield go
    for context in contexts:
        context.close()
