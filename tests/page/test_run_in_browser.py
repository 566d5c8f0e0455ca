"""The view Run, as a person uses it: read curves, point at heads, compare samples, pin, find in the log, delete."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Service
from tests.page.conftest import PHONE, Visit

PLOT = {"left": 46, "right": 12, "top": 8, "bottom": 20}  # margins of a chart, CSS pixels
pytestmark = [pytest.mark.browser, pytest.mark.e2e]


def open_run(opened: Visit, address: str = "/runs/tiny") -> Any:
    page = opened.open(address)
    page.locator(".main-chart .chart").wait_for()
    page.get_by_role("region", name="Configuration").wait_for()
    return page


def run_colour(service: Service, name: str) -> tuple[int, ...]:
    index = httpx.get(f"{service.url}/runs/{name}", trust_env=False).json()["colour"]
    light = ("3a82a4", "822412", "699d44", "9b74d8", "746420", "a55e76", "5155b2", "474754")
    return tuple(bytes.fromhex(light[index]))


def nearness(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_the_loss_is_drawn_in_the_colour_of_the_run_at_its_place(trained: Service, visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = open_run(opened, "/runs/tiny?smooth=0&log=no")
    job = httpx.get(f"{trained.url}/runs/tiny", trust_env=False).json()["job"]
    series = httpx.get(f"{trained.url}/jobs/{job}/metrics?name=loss,val_loss", trust_env=False).json()["series"]
    picture = opened.picture(".main-chart .chart")
    values = series["loss"]["values"] + series["val_loss"]["values"]
    low, high = min(values), max(values)
    pad = (high - low) * 0.04
    step, value = series["loss"]["steps"][9], series["loss"]["values"][9]
    x = PLOT["left"] + step / 30 * (picture.width - PLOT["left"] - PLOT["right"])
    y = PLOT["top"] + (high + pad - value) / (high - low + 2 * pad) * (picture.height - PLOT["top"] - PLOT["bottom"])
    seen = [picture.getpixel((round(x) + i, round(y) + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert min(nearness(pixel, run_colour(trained, "tiny")) for pixel in seen) < 40
    page.get_by_role("img", name=re.compile("Loss and validation loss by step")).wait_for()


def test_pointing_at_a_head_names_it_and_a_click_opens_it(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = open_run(opened)
    canvas = page.locator(".heat-map canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": 30, "y": 19 * 4 + 6 + 9})  # below the four heads of layer 0
    page.get_by_role("heading", name="Layer 1, head 0").wait_for()
    canvas.click(position={"x": 30, "y": 19 * 4 + 6 + 9})
    page.wait_for_url(re.compile("/attention/tiny/0.*layer=1&head=0"))


def test_a_checkpoint_is_pinned_and_the_log_is_searched(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = open_run(opened)
    page.get_by_role("button", name="Pin model_best.pt", exact=True).click()
    page.get_by_role("button", name="Unpin model_best.pt").click()
    page.get_by_role("button", name="Pin model_best.pt", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("searchbox", name="Find in the log").fill("checkpoint saved")
    found = page.locator("#log mark")
    found.first.wait_for()
    assert {each.inner_text() for each in found.all()} == {"checkpoint saved"}


def test_a_run_fits_a_phone_and_has_no_barriers(visit: Callable[..., Visit]) -> None:
    opened = visit(PHONE)
    page = open_run(opened)
    assert page.locator("#configuration details[open]").count() == 0
    assert opened.barriers() == []


@pytest.mark.slow
def test_a_failed_and_a_deleted_run_say_so(
    trained: Service, tiny: Callable[..., dict], visit: Callable[..., Visit]
) -> None:
    opened = visit()
    opened.expects_refusals = True
    job = trained.submit(tiny("short-lived"))["id"]
    page = opened.open(f"/jobs/{job}")
    trained.finished(job)
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(re.compile(r"Delete short-lived and free \d")).wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    httpx.delete(f"{trained.url}/runs/short-lived", trust_env=False).raise_for_status()
    httpx.delete(f"{trained.url}/jobs/{job}", trust_env=False).raise_for_status()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("alert").wait_for()
    page.reload()
    page.get_by_role("alert").wait_for()
