"""A page of somebody else in a real Chromium: it sends forms and uploads, and its domain is pointed at the service."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from tests.service.conftest import Site, make_site
from tests.service.fake_host import Served

__all__ = ["make_site"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.browser]
EVIL = "evil.example"
WRITES = """async (service) => {
    const data = new FormData();
    data.append("name", "mine");
    data.append("files", new Blob(["One day."]), "a.txt");
    const send = (path, body) => fetch(service + path, {method: "POST", mode: "no-cors", body}).catch(() => null);
    await send("/datasets", data);
    await send("/datasets/", data);
    await send("/jobs", new Blob(["job: {preset: quickstart}"], {type: "text/plain"}));
    return await fetch(service + "/jobs").then(reply => reply.text()).catch(() => "blocked");
}"""


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium, in which every name is this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=_chromium(), args=["--no-sandbox", f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"]
            )
        except sync_api.Error as error:
            pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
        yield opened
        opened.close()


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def foreign() -> Iterator[str]:
    """The page of somebody else, with a form for the service of its query."""

    async def page(request: Request) -> HTMLResponse:
        action = request.query_params.get("action", "")
        return HTMLResponse(
            f'<form method="post" enctype="multipart/form-data" action="{action}"><input name="name" value="mine">'
            '<input type="submit"></form>'
        )

    served = Served(Starlette(routes=[Route("/", page)]))
    yield str(httpx.URL(served.url).copy_with(host=EVIL))
    served.stop()


def test_a_foreign_page_writes_nothing_and_reads_nothing(
    browser: Any, foreign: str, make_site: Callable[..., Site]
) -> None:
    site = make_site()
    page = browser.new_page()
    refused: list[int] = []
    page.on("response", lambda reply: refused.append(reply.status) if reply.url.startswith(site.url) else None)
    page.goto(foreign)
    assert page.evaluate(WRITES, site.url) == "blocked"
    page.goto(f"{foreign}?action={site.url}/datasets")
    with page.expect_navigation():
        page.click("input[type=submit]")
    assert refused == [403] * 4  # fetch three times, and the form
    assert site.http.get("/jobs").json()["data"] == []
    assert not list(site.settings.data.glob("uploads/*"))


def test_a_domain_that_is_pointed_at_the_service_reads_nothing(browser: Any, make_site: Callable[..., Site]) -> None:
    site = make_site()
    page = browser.new_page()
    rebound = httpx.URL(site.url).copy_with(host=EVIL)
    reply = page.goto(str(rebound.copy_with(path="/jobs")))
    assert reply.status == 421
    assert page.evaluate("() => fetch('/runs').then(reply => reply.status)") == 421


def test_our_own_page_may_write(browser: Any, make_site: Callable[..., Site]) -> None:
    site = make_site()
    page = browser.new_page()
    page.goto(f"{site.url}/docs")
    page.wait_for_selector(".opblock")
    send = "() => fetch('/datasets', {method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}})"
    assert page.evaluate(f"{send}.then(reply => reply.status)") == 422
