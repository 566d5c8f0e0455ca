"""The page in headless Chromium, over a whole service with one small trained run."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.e2e.conftest import Service, make_data_root, service, tiny
from tests.service.conftest import make_site

__all__ = ["make_data_root", "make_site", "service", "tiny"]  # fixtures

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
WIDE, PHONE = (1280, 800), (390, 844)
_WATCH_POLICY = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"""


class Visit:
    """A page of the service in a browser, and everything about it that must not happen.

    Attributes:
        page: Playwright's page.
        complaints: Messages in the console, violations of the policy, requests to another host.
    """

    def __init__(self, browser: Any, url: str, size: tuple[int, int], scheme: str) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self._context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        self._url = url
        self.page = self._context.new_page()
        self.page.set_default_timeout(1000 * WAIT_S)
        self.complaints: list[str] = []
        self.expects_refusals = False
        self.page.add_init_script(_WATCH_POLICY)
        self.page.on("console", self._on_message)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._on_request)

    def open(self, address: str) -> Any:
        """Open an address and wait for its view."""
        self.page.goto(self._url + address)
        self.page.locator("#main[class^=view-]").wait_for()
        return self.page

    def reload(self) -> Any:
        """Open the present address again, as another person would."""
        return self.open(self.page.url.removeprefix(self._url))

    def pixel(self, selector: str, x: float, y: float) -> tuple[int, ...]:
        """Read the colour that is painted at a place of an element, in CSS pixels."""
        return self.picture(selector).getpixel((round(x), round(y)))

    def picture(self, selector: str) -> Image.Image:
        """Read what is painted at an element, one pixel a CSS pixel."""
        box = self.page.locator(selector).first.bounding_box()
        whole = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        left, top = round(box["x"]), round(box["y"])
        return whole.crop((left, top, left + round(box["width"]), top + round(box["height"])))

    def barriers(self) -> list[str]:
        """Find what axe-core calls serious or worse: rule and element."""
        source = ROOT / "tools" / "page" / "node_modules" / "axe-core" / "axe.min.js"
        if not source.is_file():
            pytest.skip("axe-core is not installed: make check installs it")
        self.page.evaluate(source.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run().then((result) => result.violations)")
        worst = [rule for rule in found if rule["impact"] in {"serious", "critical"}]
        return [f"{rule['id']}: {node['html'][:120]}" for rule in worst for node in rule["nodes"]]

    def close(self) -> None:
        """Close the page, and check that it was quiet and no wider than its window."""
        width = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        self._context.close()
        assert self.complaints == []
        assert width[0] <= width[1]

    def _on_message(self, message: Any) -> None:
        is_refusal = message.text.startswith("Failed to load resource: the server responded with a status of 4")
        if not (self.expects_refusals and is_refusal):
            self.complaints.append(f"console: {message.text} {message.location}")

    def _on_request(self, request: Any) -> None:
        host = urlsplit(request.url).netloc
        if host and host != urlsplit(self._url).netloc:
            self.complaints.append(f"another host: {request.url}")


@pytest.fixture(scope="module")  # its event loop would be that of every later test
def browser() -> Iterator[Any]:
    """Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on PATH: nothing of the page was tested")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def trained(service: Service, tiny: Callable[..., dict]) -> Service:
    """The service with the finished run `tiny`: heads 4 2 1, 30 steps."""
    service.finished(service.submit(tiny("tiny"))["id"])
    return service


@pytest.fixture
def visit(browser: Any, trained: Service) -> Iterator[Callable[..., Visit]]:
    """Open a browser window: ``visit()``, ``visit(PHONE)``, ``visit(scheme="dark")``. All are checked in the end."""
    visits: list[Visit] = []

    def make(size: tuple[int, int] = WIDE, scheme: str = "light") -> Visit:
        visits.append(Visit(browser, trained.url, size, scheme))
        return visits[-1]

    yield make
    for each in visits:
        each.close()
