"""The view Jobs, as a person uses it: submit from the form, follow, pause, resume, filter, compare."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.e2e.conftest import Service
from tests.page.conftest import PHONE, Visit
from tests.polling import eventually

SURFACE = (255, 255, 255)
RUN_COLOURS = [
    tuple(bytes.fromhex(colour))
    for colour in ("3a82a4", "822412", "699d44", "9b74d8", "746420", "a55e76", "5155b2", "474754")
]
pytestmark = [pytest.mark.browser, pytest.mark.e2e]


def form_of(page: Any) -> Any:
    return page.get_by_role("form", name="New run")


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.getcolors(1 << 20)}


def columns_of(page: Any) -> list[str]:
    return [each.get_attribute("aria-valuenow") for each in form_of(page).get_by_role("spinbutton").all()]


def open_form(opened: Visit) -> Any:
    page = opened.open("/")
    form_of(page).get_by_text("989,952").wait_for()  # the budget of quickstart
    return page


def test_columns_and_list_follow_each_other_and_the_service_refuses_what_does_not_fit(
    visit: Callable[..., Visit],
) -> None:
    opened = visit()
    opened.expects_refusals = True
    page = open_form(opened)
    form_of(page).get_by_role("spinbutton", name="Heads of layer 3").press("ArrowDown")
    assert form_of(page).get_by_label("Heads per layer", exact=True).input_value() == "8, 4, 2, 2"
    form_of(page).get_by_label("Heads per layer", exact=True).fill("8 4 3 1")
    form_of(page).get_by_text("3 heads do not divide n_embd 128").wait_for()
    assert columns_of(page) == ["8", "4", "3", "1"]
    assert form_of(page).get_by_role("button", name="Add to the queue").is_disabled()
    form_of(page).get_by_role("button", name="4", exact=True).click()
    form_of(page).locator("[type=submit]:enabled").wait_for()
    assert columns_of(page) == ["8", "4", "4", "1"]


def test_a_click_in_a_column_sets_the_nearest_count_that_fits(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = open_form(opened)
    column = form_of(page).get_by_role("spinbutton", name="Heads of layer 2")
    box = column.bounding_box()
    column.click(position={"x": box["width"] / 2, "y": 4 + 12 * 4.5})  # the fifth place
    assert columns_of(page) == ["8", "4", "4", "1"]
    page.mouse.move(0, 0)
    assert opened.pixel(".column:nth-child(3) svg", 15, 6 + 12 * 3) == (27, 27, 25)  # ink: the fourth head
    assert opened.pixel(".column:nth-child(3) svg", 11, 6 + 12 * 4) == (243, 243, 240)  # beside a small dot


def test_yaml_and_form_show_the_same_draft(visit: Callable[..., Visit]) -> None:
    page = open_form(visit())
    form_of(page).get_by_label("Name").fill("by-hand")
    form_of(page).get_by_label("Steps").fill("70")
    form_of(page).get_by_role("button", name="YAML").click()
    text = form_of(page).get_by_label("Configuration as YAML")
    assert yaml.safe_load(text.input_value()) == {
        "job": {"preset": "quickstart"},
        "experiment_name": "by-hand",
        "model": {"n_head_list": [8, 4, 2, 1]},
        "training": {"max_steps": 70},
    }
    text.fill(
        "job:\n  preset: progressive\n  priority: 3\n"
        "experiment_name: pasted\ntraining: {max_steps: 90, warmup_steps: 1}\n"
    )
    form_of(page).locator(".budget").get_by_text("90", exact=True).wait_for()
    form_of(page).get_by_role("button", name="All keys").click()
    assert form_of(page).get_by_role("button", name="progressive").get_attribute("aria-pressed") == "true"
    assert form_of(page).get_by_label("Name").input_value() == "pasted"
    assert form_of(page).get_by_label("Priority").input_value() == "3"


def test_time_and_place_are_shown_where_such_a_run_was_made(
    visit: Callable[..., Visit], tiny: Callable[..., dict]
) -> None:
    page = open_form(visit())
    time = form_of(page).locator(".budget").get_by_text("Time", exact=True)
    assert not time.count()  # no run has the shape of quickstart
    form_of(page).get_by_role("button", name="YAML").click()
    form_of(page).get_by_label("Configuration as YAML").fill(yaml.safe_dump(tiny("timed")))
    time.wait_for()
    form_of(page).get_by_text(re.compile(r"^at [\d,]+ tokens/s here$")).wait_for()
    form_of(page).get_by_text(re.compile("^Place 1, starts in a moment$")).wait_for()


@pytest.mark.slow
def test_a_run_is_submitted_watched_paused_resumed_and_compared(
    visit: Callable[..., Visit], trained: Service, tiny: Callable[..., dict]
) -> None:
    opened = visit()
    page = open_form(opened)
    form_of(page).get_by_role("button", name="YAML").click()
    text = form_of(page).get_by_label("Configuration as YAML")
    text.fill(yaml.safe_dump(tiny("watched", training={"max_steps": 4000})))
    form_of(page).locator(".budget").get_by_text("4,000").wait_for()
    form_of(page).get_by_role("button", name="Add to the queue").click()
    form_of(page).get_by_role("button", name="Add to the queue").click()  # the same job
    card = page.get_by_role("article", name="watched")
    card.get_by_text("running").wait_for()
    progress = card.get_by_role("progressbar")
    eventually(lambda: int(progress.get_attribute("aria-valuenow")) > 5)
    card.locator("canvas").wait_for()
    curve = opened.picture(".job-card canvas")
    job = trained.client.get("/jobs?run=watched").json()["data"][0]
    assert RUN_COLOURS[job["colour"]] in colours_of(curve.crop((0, 0, curve.width // 10, 60)))
    assert colours_of(curve.crop((curve.width - 40, 0, curve.width, 60))) == {SURFACE}  # the bar is the axis
    card.get_by_role("button", name="Pause watched").click()
    row = page.get_by_role("row", name=re.compile("watched"))
    row.get_by_text("paused").wait_for()
    row.get_by_role("button", name="Resume watched").click()
    card.get_by_text("running").wait_for()
    card.get_by_role("button", name="Cancel watched").click()
    row.get_by_text("cancelled").wait_for()
    assert [job["run"] for job in trained.client.get("/jobs?run=watched").json()["data"]] == ["watched"]
    for name in ("watched", "tiny"):
        page.get_by_label(f"Choose {name}").check()
    page.get_by_role("link", name="Picture of 2 runs").click()
    page.wait_for_url("**/compare?runs=watched,tiny&format=png")


def test_the_filter_is_in_the_address(visit: Callable[..., Visit]) -> None:
    opened = visit()
    page = opened.open("/")
    page.get_by_role("link", name="tiny").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("no such")
    page.get_by_text("No run has that name.").wait_for()
    assert page.url.endswith("?filter=no+such")
    opened.reload()
    page.get_by_role("button", name="Show all").click()
    assert page.get_by_role("link", name="tiny").first.is_visible()


def test_keys_choose_and_open_a_row(visit: Callable[..., Visit]) -> None:
    page = visit().open("/?filter=tiny")
    page.get_by_role("link", name="tiny").first.wait_for()
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.get_by_label("Choose tiny").is_checked()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/tiny")


def test_names_full_of_markup_are_text(visit: Callable[..., Visit], trained: Service) -> None:
    opened = visit(PHONE)
    opened.expects_refusals = True
    page = open_form(opened)
    form_of(page).get_by_label("Name").fill('<img src=x onerror="alert(1)">\u202e')
    refusal = form_of(page).locator("#new-experiment_name-wrong:not(:empty)")
    assert "<img src=x" in refusal.inner_text()
    assert page.locator("main img").count() == 0


def test_the_page_recovers_by_itself_from_a_service_that_was_away(visit: Callable[..., Visit]) -> None:
    opened = visit()
    opened.expects_refusals = True
    page = opened.open("/")
    page.get_by_text("Live", exact=True).wait_for()
    page.context.set_offline(True)
    page.evaluate("dispatchEvent(new Event('pagehide')); dispatchEvent(new Event('pageshow'))")
    page.get_by_text(re.compile("Offline, last seen")).wait_for()
    page.context.set_offline(False)
    eventually(lambda: page.get_by_text("Live", exact=True).is_visible())
    opened.complaints.clear()  # what the browser says about a network that is gone
