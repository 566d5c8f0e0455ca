"""What every view has: the bar, keys, theme, addresses; and drawing, by its pixels."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.page.conftest import PHONE, WIDE, Visit
from tests.polling import eventually
from tests.service.conftest import Site

pytestmark = [pytest.mark.browser, pytest.mark.e2e]
ADDRESSES = ("/", "/jobs", "/runs/tiny", "/attention/tiny/0", "/nowhere/at/all")
GLYPH = """async (heads) => {
    const base = document.querySelector("script[type=module]").src.replace(/main.js$/, "");
    const { glyph } = await import(base + "glyph.js");
    const node = glyph(heads, { height: 96, pitch: 12 });
    node.id = "drawn";
    node.style.color = "rgb(255, 0, 0)";
    document.querySelector("#main").replaceChildren(node);
}"""


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("address", ADDRESSES)
def test_every_address_shows_a_view_quietly(visit: Callable[..., Visit], address: str, size: tuple[int, int]) -> None:
    opened = visit(size)
    opened.expects_refusals = "nowhere" in address
    page = opened.open(address)
    assert page.title().endswith("Headcount")
    assert page.locator("h1").count() == 1


def test_a_glyph_has_a_dot_for_each_head_and_nothing_else(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.open("/").evaluate(GLYPH, [8, 4, 2, 1])
    painted = [
        [opened.pixel("#drawn", 12 * layer + 6, 12 * head + 6) == (255, 0, 0) for head in range(8)]
        for layer in range(4)
    ]
    assert [sum(column) for column in painted] == [8, 4, 2, 1]
    assert [column.index(False) for column in painted[1:]] == [4, 2, 1]  # columns hang from head 0
    assert opened.pixel("#drawn", 12, 12) != (255, 0, 0)  # between four dots


def test_links_open_views_without_loading_the_page_again(visit: Callable[..., Visit]) -> None:
    page = visit().open("/")
    page.evaluate("window.stays = true")
    page.get_by_role("navigation").get_by_role("link", name="Attention").click()
    page.wait_for_url("**/attention")
    eventually(lambda: page.title().startswith("Attention"))
    assert page.evaluate("document.activeElement.id") == "main"
    page.go_back()
    eventually(lambda: page.title().startswith("Jobs"))
    assert page.evaluate("window.stays")


def test_keys_go_to_views_and_change_the_theme(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = opened.open("/")
    page.keyboard.press("g")
    page.keyboard.press("a")
    page.wait_for_url("**/attention")
    paper = opened.pixel("#bar", 700, 4)
    page.keyboard.press("t")
    assert sum(opened.pixel("#bar", 700, 4)) < sum(paper)
    opened.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()


def test_the_page_works_below_a_prefix(browser: Any, make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/lab/headcount")
    opened = Visit(browser, f"{site.url}/lab/headcount", WIDE, "light")
    page = opened.open("/attention")
    page.get_by_role("link", name="Jobs").click()
    page.wait_for_url("**/lab/headcount/")
    page.get_by_text("No run yet.").wait_for()
    page.get_by_text("Live", exact=True).wait_for()
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_use_the_home_page(visit: Callable[..., Visit], scheme: str) -> None:
    opened = visit(scheme=scheme)
    page = opened.open("/")
    page.get_by_text("989,952").wait_for()
    assert opened.barriers() == []


@pytest.mark.slow
def test_five_tabs_are_live_with_one_stream(visit: Callable[..., Visit]) -> None:
    opened = visit()
    streams: list[str] = []
    opened.page.context.on("request", lambda request: streams.append(request.url) if "/events" in request.url else None)
    opened.open("/")
    tabs = [opened.page, *(opened.page.context.new_page() for _ in range(4))]
    for tab in tabs[1:]:
        tab.goto(opened.page.url)
    for tab in tabs:
        tab.get_by_text("Live", exact=True).wait_for()
    assert len(streams) == 1
    opened.page.goto("about:blank")  # the tab with the stream is left: another one takes over
    eventually(lambda: tabs[1].title() and len(streams) == 2)  # requests are reported while the browser is asked
    for tab in tabs[1:]:
        tab.get_by_text("Live", exact=True).wait_for()
