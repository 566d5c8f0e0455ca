"""A job's metrics over HTTP: JSON and CSV, downsampled and exact."""

import csv
import io
import shutil
import struct
from typing import Any

import pytest

from model_core.storage.events import EventWriter
from service.metrics import SeriesCache

ODD = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e16, 123456789.12345678]


def tell(site: Any, claim: Any, events: list[tuple[str, dict[str, Any]]]) -> None:
    writer = site.writer(claim)
    for kind, fields in events:
        writer.append(kind, **fields)
    writer.close()


def steps(losses: list[float], begin: int = 1) -> list[tuple[str, dict[str, Any]]]:
    return [("step", {"step": step, "loss": loss}) for step, loss in enumerate(losses, begin)]


def bits(values: Any) -> list[bytes]:
    return [struct.pack("d", float(value)) for value in values]


@pytest.fixture
def started(site) -> tuple[str, Any]:
    """Address of the metrics of a running job, and its claim."""
    return f"{site.submit('tiny')['links']['self']}/metrics", site.claim()


def test_every_metric_that_was_reported_is_a_series(site, started) -> None:
    path, claim = started
    tell(
        site,
        claim,
        [
            ("start", {"max_steps": 3}),
            ("step", {"step": 1, "loss": 6.25, "lr": 1e-4, "grad_norm": 2.5, "tokens_per_s": 1000.0}),
            ("step", {"step": 2, "loss": float("nan"), "lr": 2e-4, "grad_norm": float("inf"), "tokens_per_s": 900.0}),
            ("validation", {"step": 2, "val_loss": 6.5, "bits_per_byte": None}),
        ],
    )
    assert site.http.get(path).json() == {
        "object": "metrics",
        "job": claim.id,
        "run": "tiny",
        "series": {
            "loss": {"steps": [1, 2], "values": [6.25, "nan"], "points_total": 2},
            "lr": {"steps": [1, 2], "values": [1e-4, 2e-4], "points_total": 2},
            "grad_norm": {"steps": [1, 2], "values": [2.5, "inf"], "points_total": 2},
            "tokens_per_s": {"steps": [1, 2], "values": [1000.0, 900.0], "points_total": 2},
            "val_loss": {"steps": [2], "values": [6.5], "points_total": 1},
        },
        "x": {"tokens_per_step": None, "flops_per_token": None, "seconds": {}},
    }
    chosen = site.http.get(path, params={"name": "val_loss,bits_per_byte,val_loss"}).json()["series"]
    assert chosen == {
        "val_loss": {"steps": [2], "values": [6.5], "points_total": 1},
        "bits_per_byte": {"steps": [], "values": [], "points_total": 0},
    }


def test_axes_turn_steps_into_tokens_flops_and_seconds(site) -> None:
    run = site.make_run("tiny")
    job, claim = site.submit("timed"), site.claim()
    tell(
        site,
        claim,
        [
            ("validation", {"step": 0, "val_loss": 7.0}),
            ("step", {"step": 1, "loss": 6.0, "tokens_per_s": 64.0, "memory_bytes": 1000, "mfu": 0.25}),
            ("step", {"step": 2, "loss": 5.0, "tokens_per_s": 32.0, "memory_bytes": 2000, "mfu": 0.125}),
        ],
    )
    shutil.copy(run.path / "config.yaml", site.layout.run("timed"))
    found = site.http.get(job["links"]["metrics"], params={"name": "loss,val_loss,memory_bytes,mfu"}).json()
    assert (found["series"]["memory_bytes"]["values"], found["series"]["mfu"]["values"]) == (
        [1000, 2000],
        [0.25, 0.125],
    )
    budget = site.http.get("/runs/tiny/report").json()["budget"]
    assert found["x"] == {
        "tokens_per_step": 64,
        "flops_per_token": budget["flops_per_token"],
        "seconds": {"loss": [1.0, 3.0], "val_loss": [0.0], "memory_bytes": [1.0, 3.0], "mfu": [1.0, 3.0]},
    }


def test_a_range_of_steps_is_reduced_by_itself(site, started) -> None:
    path, claim = started
    tell(site, claim, steps([1 / step for step in range(1, 101)]))
    found = site.http.get(path, params={"from": 20, "to": 60, "max_points": 5}).json()["series"]["loss"]
    assert (found["steps"][0], found["steps"][-1], len(found["steps"]), found["points_total"]) == (20, 60, 5, 41)
    table = site.http.get(path, params={"from": "9e1", "format": "csv"}).text.splitlines()
    assert [line.partition(",")[0] for line in table] == ["step", *map(str, range(90, 101))]
    reply = site.http.get(path, params={"from": 5, "to": 4})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/to")


def test_csv_has_a_row_a_step_and_empty_cells(site, started) -> None:
    path, claim = started
    validation = ("validation", {"step": 2, "val_loss": 6.5})
    tell(site, claim, [*steps([6.25, float("-inf"), 6.0]), validation])
    by_accept = site.http.get(path, headers={"Accept": "text/csv"})
    assert by_accept.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_accept.text == "step,loss,val_loss\r\n1,6.25,\r\n2,-inf,6.5\r\n3,6.0,\r\n"
    by_name = site.http.get(path, params={"format": "csv", "name": "val_loss"}, headers={"Accept": "text/html"})
    assert by_name.text == "step,val_loss\r\n2,6.5\r\n"
    refused = site.http.get(path, headers={"Accept": "text/html"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")


def test_floats_are_exact_in_both_forms(site, started) -> None:
    path, claim = started
    tell(site, claim, steps(ODD))
    table = csv.DictReader(io.StringIO(site.http.get(path, params={"format": "csv"}).text))
    assert bits(site.http.get(path).json()["series"]["loss"]["values"]) == bits(ODD)
    assert bits(row["loss"] for row in table) == bits(ODD)


def test_a_resumed_attempt_replaces_the_steps_that_it_reports_again(site, started) -> None:
    path, claim = started
    tell(site, claim, steps([9.0, 8.0, 7.0, 6.5]))
    assert site.http.get(path).json()["series"]["loss"]["values"] == [9.0, 8.0, 7.0, 6.5]
    site.finish(claim, "crashed")
    tell(site, site.claim(), steps([6.0, 5.0], begin=3))
    assert site.http.get(path).json()["series"]["loss"] == {
        "steps": [1, 2, 3, 4],
        "values": [9.0, 8.0, 6.0, 5.0],
        "points_total": 4,
    }


def test_a_long_curve_is_thinned_and_keeps_what_matters(site, started) -> None:
    path, claim = started
    losses = [10 / (step + 1) for step in range(3000)]
    losses[1234], losses[2345] = 50.0, float("nan")
    tell(site, claim, steps(losses, begin=0))
    loss = site.http.get(path, params={"max_points": 50}).json()["series"]["loss"]
    assert (len(loss["steps"]), loss["points_total"]) == (51, 3000)
    points = dict(zip(loss["steps"], loss["values"], strict=True))
    assert {0: losses[0], 1234: 50.0, 2345: "nan", 2999: losses[2999]}.items() <= points.items()
    assert len(site.http.get(path).json()["series"]["loss"]["steps"]) == 1001
    assert len(site.http.get(path, params={"max_points": 100_000}).json()["series"]["loss"]["steps"]) == 3000


def test_a_job_that_has_reported_nothing_has_no_points(site, started) -> None:
    path, _ = started
    assert site.http.get(path).json()["series"] == {}
    empty = {"steps": [], "values": [], "points_total": 0}
    assert site.http.get(path, params={"name": "loss"}).json()["series"] == {"loss": empty}
    csvs = [site.http.get(path, params={"format": "csv", **query}).text for query in ({}, {"name": "loss,lr"})]
    assert csvs == ["step\r\n", "step,loss,lr\r\n"]


def test_a_name_that_is_none_is_refused_with_those_that_are(site, started) -> None:
    reply = site.http.get(started[0], params={"name": "loss,val_los"})
    (error,) = reply.json()["errors"]
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert (error["value"], error["nearest"][0]) == ("val_los", "val_loss")
    assert all(name in error["detail"] for name in ("loss", "lr", "grad_norm", "tokens_per_s", "bits_per_byte"))


@pytest.mark.parametrize("query", [{"max_points": 1}, {"max_points": 100_001}, {"format": "xml"}, {"name": ""}])
def test_other_parameters_have_bounds(site, started, query: dict[str, Any]) -> None:
    reply = site.http.get(started[0], params=query)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")


def test_a_job_does_not_show_the_curves_of_another_that_took_its_run(site) -> None:
    first = site.submit("tiny")
    site.http.post(first["links"]["cancel"])
    second = site.submit("tiny")
    tell(site, site.claim(), steps([3.0]))
    found = [site.http.get(f"{job['links']['self']}/metrics").json()["series"] for job in (first, second)]
    assert [list(series) for series in found] == [[], ["loss"]]


def test_an_unknown_job_has_no_curves(site) -> None:
    reply = site.http.get("/jobs/job_0/metrics")
    assert (reply.status_code, reply.json()["code"]) == (404, "job_not_found")


def test_no_more_is_kept_in_memory_than_was_allowed(site) -> None:
    jobs = []
    for number in range(3):
        site.submit(f"run-{number}")
        claim = site.claim()
        tell(site, claim, steps([3.0, 2.0]))
        site.finish(claim)
        jobs.append(site.store.get(claim.id))
    curves = SeriesCache(max_values=5)
    for job in [*jobs, *jobs]:
        assert curves.read(site.layout, job, ["loss"])["loss"].values.tolist() == [3.0, 2.0]
        assert len(curves) <= 5
    assert len(curves) == 4


def test_a_run_that_was_made_again_shows_none_of_the_old_curves(site) -> None:
    curves = SeriesCache()
    for losses in ([3.0, 2.0, 1.0], [9.0]):
        run = site.make_run("tiny")
        writer = EventWriter(run.events, 1)
        for kind, fields in steps(losses):
            writer.append(kind, **fields)
        writer.close()
        assert curves.read_run(run, ["loss"])["loss"].values.tolist() == losses
        shutil.rmtree(run.path)


def test_a_reader_follows_the_first_event_and_not_the_inode(tmp_path) -> None:
    path, curves = tmp_path / "events.jsonl", SeriesCache()
    path.write_text('{"seq":1,"time":"2026-12-01T00:00:00.000Z","attempt":1,"type":"start"}\n')
    before, inode = curves.reader(path), path.stat().st_ino
    with path.open("r+") as file:
        file.write('{"seq":1,"time":"2026-12-01T00:00:01')
    assert path.stat().st_ino == inode
    assert curves.reader(path) is not before
    assert curves.reader(path) is curves.reader(path)
