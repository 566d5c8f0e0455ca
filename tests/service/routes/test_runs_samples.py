"""Samples of a training over HTTP, read from its events."""

from typing import Any

import pytest

from model_core.storage.events import EventWriter


@pytest.fixture
def sampled(site) -> Any:
    """A run whose second attempt repeated step 20, with lines that are no samples."""
    run = site.make_run("tiny")
    for attempt, steps in ((1, (10, 20)), (2, (20, 30))):
        writer = EventWriter(run.events, attempt)
        for step in steps:
            writer.append("step", step=step, loss=1.0)
            writer.append("sample", step=step, texts=[f"attempt {attempt}", f"\u2028 at {step}"])
        writer.append("sample", step="x", texts=[1])
        writer.close()
    return site


def test_samples_come_by_step_from_the_latest_attempt(sampled) -> None:
    found = sampled.http.get("/runs/tiny/samples").json()
    assert {key: found[key] for key in ("object", "first_id", "last_id", "has_more")} == {
        "object": "list",
        "first_id": 10,
        "last_id": 30,
        "has_more": False,
    }
    assert [list(sample) for sample in found["data"]] == [["object", "step", "time", "texts"]] * 3
    assert [(sample["step"], sample["texts"]) for sample in found["data"]] == [
        (10, ["attempt 1", "\u2028 at 10"]),
        (20, ["attempt 2", "\u2028 at 20"]),
        (30, ["attempt 2", "\u2028 at 30"]),
    ]


def test_samples_come_in_pages(sampled) -> None:
    first = sampled.http.get("/runs/tiny/samples", params={"limit": 2})
    assert ([sample["step"] for sample in first.json()["data"]], first.json()["has_more"]) == ([10, 20], True)
    rest = sampled.http.get(first.links["next"]["url"]).json()
    assert ([sample["step"] for sample in rest["data"]], rest["has_more"]) == ([30], False)


def test_a_run_without_samples_has_an_empty_list(site) -> None:
    site.make_run("tiny")
    assert site.http.get("/runs/tiny/samples").json()["data"] == []
    missing = site.http.get("/runs/none/samples")
    assert (missing.status_code, missing.json()["code"]) == (404, "run_not_found")
