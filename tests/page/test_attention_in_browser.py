"""The view Attention, as a person uses it: heads, tokens, steps, other texts; its colours against the weights."""

import base64
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from tests.e2e.conftest import Service
from tests.page.conftest import PHONE, Visit
from tests.polling import eventually

RAMPS = {
    "light": [bytes.fromhex(stop) for stop in ("eceff5", "b9cbea", "7298d8", "2f60b4", "0b2659")],
    "dark": [bytes.fromhex(stop) for stop in ("1e232c", "25406e", "3a6bbb", "7ea9ee", "e9f1ff")],
}
LABELS_PX = 76  # beside the matrix
CELLS = [(0, 0), (3, 0), (3, 2), (7, 4), (9, 9)]
pytestmark = [pytest.mark.browser, pytest.mark.e2e]


def colour_of(level: float, scheme: str = "light") -> tuple[int, ...]:
    at = min(1.0, level / 255) * 4
    i = min(3, math.floor(at))
    low, high = RAMPS[scheme][i], RAMPS[scheme][i + 1]
    return tuple(round(a + (b - a) * (at - i)) for a, b in zip(low, high, strict=True))


def is_near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 2 for a, b in zip(one, other, strict=True))


def weights_of(trained: Service, layer: int, head: int, **query: Any) -> list[list[int]]:
    """Levels of a head as the API sends them: 255 sqrt(p), a row a query."""
    asked = {"layer": layer, "head": head, **query}
    reply = trained.client.get("/attention/tiny/0/weights", params=asked).json()
    levels = base64.b64decode(reply["layers"][0]["weights"])
    return [list(levels[n * (n + 1) // 2 : (n + 1) * (n + 2) // 2]) for n in range(len(reply["tokens"]))]


def open_head(opened: Visit, query: str = "layer=0&head=2") -> Any:
    page = opened.open(f"/attention/tiny/0?{query}")
    page.locator(".pairs li").first.wait_for()  # the panel is the last
    return page


def pixel_of(picture: Image.Image, x: float, y: float) -> tuple[int, ...]:
    pixel = picture.getpixel((int(x), int(y)))
    assert isinstance(pixel, tuple)
    return pixel


def cells_of(opened: Visit, size: int, places: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Colours in the middle of the cells (query, key) of the matrix."""
    picture = opened.picture(".matrix canvas")
    cell = (picture.width - LABELS_PX) / size
    return [pixel_of(picture, (key + 0.5) * cell, (query + 0.5) * cell) for query, key in places]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cells_and_thumbnails_have_the_colour_of_their_weight(
    visit: Callable[..., Visit], trained: Service, scheme: str
) -> None:
    opened = visit(scheme=scheme)
    page = open_head(opened)
    page.mouse.move(0, 0)
    levels = weights_of(trained, 0, 2)
    expected = [colour_of(levels[query][key], scheme) for query, key in CELLS]
    painted = cells_of(opened, len(levels), CELLS)
    assert [is_near(*pair) for pair in zip(painted, expected, strict=True)] == [True] * len(CELLS)
    small = opened.picture('.head[data-head="0.2"] canvas')
    pitch = small.width / len(levels)
    painted = [pixel_of(small, (key + 0.5) * pitch, (query + 0.5) * pitch) for query, key in CELLS[:3]]
    assert [is_near(*pair) for pair in zip(painted, expected, strict=False)] == [True] * 3
    assert cells_of(opened, len(levels), [(2, 9)])[0] == opened.pixel("#main", 2, 2)  # unseen: no colour


def test_a_scale_per_head_ends_at_its_largest_weight(visit: Callable[..., Visit], trained: Service) -> None:
    opened = visit()
    page = open_head(opened)
    page.keyboard.press("s")
    assert "scale=head" in page.url
    page.mouse.move(0, 0)
    levels = weights_of(trained, 0, 2)
    most = max(level for row in levels for level in row[1:])
    expected = [colour_of(255 * levels[query][key] / most) for query, key in CELLS]
    painted = cells_of(opened, len(levels), CELLS)
    assert [is_near(*pair) for pair in zip(painted, expected, strict=True)] == [True] * len(CELLS)
    assert page.locator(".weight-marks span").last.inner_text() == f"{(most / 255) ** 2:.2f}".lstrip("0")


def test_a_pinned_token_and_a_chosen_head_are_in_the_address(visit: Callable[..., Visit], trained: Service) -> None:
    opened = visit()
    page = open_head(opened, "layer=0&head=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.locator("h2", has_text="Layer 1, head 1").wait_for()
    size = len(weights_of(trained, 1, 1))
    cell = (page.locator(".matrix canvas").first.bounding_box()["width"] - LABELS_PX) / size
    page.locator(".matrix .frames").click(position={"x": 2.5 * cell, "y": 6.5 * cell})
    page.mouse.move(0, 0)
    assert "layer=1&head=1&token=6" in page.url
    assert opened.pixel(".token.here", 5, 2) == (27, 27, 25)  # ink
    assert page.locator(".token.look").count() + page.locator(".token.seen").count() > 3
    blue = pixel_of(opened.picture(".matrix canvas"), 2.5 * cell, round(6 * cell) - 1)
    assert blue[2] - blue[0] > 80  # the frame of its row
    before = opened.picture("main")
    page = opened.reload()
    page.locator(".pairs li").first.wait_for()
    page.get_by_text("Stroke:").wait_for()
    assert opened.picture("main").tobytes() == before.tobytes()
    page.keyboard.press("Escape")
    assert "token" not in page.url


def test_steps_change_the_picture_and_play_ends_at_the_last(visit: Callable[..., Visit], trained: Service) -> None:
    opened = visit()
    page = open_head(opened)
    page.keyboard.press(",")
    page.locator(".step-now", has_text="step 20").wait_for()
    assert "checkpoint=step%3D20" in page.url
    page.mouse.move(0, 0)
    levels = weights_of(trained, 0, 2, checkpoint="step=20")
    expected = [colour_of(levels[query][key]) for query, key in CELLS]

    def is_painted() -> bool:
        return all(itertools.starmap(is_near, zip(cells_of(opened, len(levels), CELLS), expected, strict=True)))

    eventually(is_painted)
    page.keyboard.press("Space")
    page.locator(".step-now", has_text="step 30").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert "checkpoint=best" in page.url


def test_heads_are_ranked_by_a_metric_and_a_second_click_turns_the_order(
    visit: Callable[..., Visit], trained: Service
) -> None:
    page = open_head(visit())
    page.get_by_label("Metric", exact=True).select_option("mean_distance")
    page.get_by_role("button", name="Ranked").click()
    ranked = trained.client.get("/attention/tiny/0/statistics", params={"sort": "mean_distance"}).json()["heads"]
    names = [f"{head['layer']}.{head['head']}" for head in ranked]
    assert page.locator(".head-name").all_inner_texts() == names
    page.get_by_role("button", name="Ranked").click()
    assert page.locator(".head-name").all_inner_texts() == names[::-1]
    assert "arrange=ranked&order=asc" in page.url


def test_any_text_is_looked_at_and_a_long_one_leaves_the_rest(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.expects_refusals = True
    page = open_head(opened)
    field = page.get_by_label("Look at any text")
    field.fill("the cat sat on the mat " * 30)
    field.press("Enter")
    page.locator(".matrix-box .problem", has_text="prompt_too_long").wait_for()
    assert page.locator(".head").count() == 7
    assert page.locator(".token").count() > 10
    page.get_by_role("button", name="Look at the first 32 tokens").click()
    eventually(lambda: "/attention/tiny/t_" in page.evaluate("location.pathname"))
    page.locator(".pairs li").first.wait_for()
    assert page.locator(".token").count() == 32
    page.go_back()
    page.locator(".pairs li").first.wait_for()
    assert "/attention/tiny/0" in page.url


def test_what_cannot_be_read_stands_in_place_of_the_matrix(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.expects_refusals = True
    page = opened.open("/attention/tiny/0?checkpoint=step%3D7")
    page.locator(".matrix-box .problem", has_text="checkpoint_not_found").wait_for()
    assert page.locator(".head").count() == 7
    page.keyboard.press(".")
    page.locator(".pairs li").first.wait_for()
    assert page.locator(".matrix-box .problem").is_hidden()


def test_without_a_text_the_first_one_is_shown(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = opened.open("/attention")
    page.locator(".pairs li").first.wait_for()
    assert page.url.endswith("/attention/tiny/0")


def test_tab_stops_once_at_strip_grid_and_matrix(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = open_head(opened)
    assert opened.barriers() == []
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(":focus").get_attribute("aria-label").startswith("token 1")
    stops = []
    for _ in range(9):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.className || document.activeElement.innerText"))
    assert stops[-3:] == ["head", "matrix", "pair"]
    page.locator(".matrix").focus()
    page.keyboard.press("ArrowDown")
    assert "looks at" in page.locator(".matrix-box [aria-live]").inner_text()


def test_on_a_phone_the_grid_takes_less_than_half_of_the_height(visit: Callable[..., Visit]) -> None:
    opened = visit(PHONE)
    page = open_head(opened)
    assert page.locator(".heads-box").bounding_box()["height"] < PHONE[1] / 2
    order = [page.locator(name).bounding_box()["y"] for name in (".heads-box", ".reading-lines", ".matrix")]
    assert order == sorted(order)
