"""Actions on jobs, as docs/api.md documents them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from model_core.storage.data_identity import identify
from model_core.storage.dataset import Dataset
from model_core.storage.files import write_json
from tests.polling import eventually
from tests.service.conftest import DATASET
from worker.jobs.states import ACTIONS, allowed_actions

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
WAKE_UPS = "headcount:celery:wake"


def cells() -> list[tuple[str, str, str]]:
    """Status, action and answer of every cell of the documented table."""
    section = PAGE.split("\n## Actions\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["status", *ACTIONS]
    return [
        (row[0].replace("`", ""), action, cell)
        for row in rows[2:]
        for action, cell in zip(ACTIONS, row[1:], strict=True)
    ]


def _ended(result: str) -> Callable[[Any, str], None]:
    return lambda site, job_id: site.finish(site.claim(), result)


def _wished(action: str, *, running: bool) -> Callable[[Any, str], None]:
    def wish(site: Any, job_id: str) -> None:
        site.claim() if running else None
        site.store.request_action(job_id, action)

    return wish


REACH: dict[str, Callable[[Any, str], object]] = {
    "queued": lambda site, job_id: None,
    "running": lambda site, job_id: site.claim(),
    "stopping to cancel": _wished("cancel", running=True),
    "stopping to pause": _wished("pause", running=True),
    "paused": _wished("pause", running=False),
    "succeeded": _ended("succeeded"),
    "failed": _ended("failed"),
    "cancelled": _wished("cancel", running=False),
}


def ask(site: Any, job_id: str, action: str) -> Any:
    return site.http.delete(f"/jobs/{job_id}") if action == "delete" else site.http.post(f"/jobs/{job_id}/{action}")


def test_the_documented_table_has_every_cell() -> None:
    assert {(status, action) for status, action, _ in cells()} == {(s, a) for s in REACH for a in ACTIONS}


@pytest.mark.parametrize(("status", "action", "answer"), cells())
def test_every_action_in_every_status_answers_what_the_table_says(site, status: str, action: str, answer: str) -> None:
    job_id = site.submit()["id"]
    REACH[status](site, job_id)
    reply = ask(site, job_id, action)
    code, _, target = answer.partition(" ")
    assert str(reply.status_code) == code, reply.text
    present = status.split()[0]
    expected = {
        "202": lambda: reply.json()["status"] == target and ask(site, job_id, action).status_code == 200,
        "200": lambda: reply.json()["status"] == present,
        "204": lambda: site.http.get(f"/jobs/{job_id}").status_code == 404,
        "409": lambda: (
            (reply.json()["code"], reply.json()["job_status"], reply.json()["allowed_actions"])
            == ("action_not_allowed", present, [*allowed_actions(present)])
        ),
    }
    assert expected[code](), reply.text


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry", "delete"])
def test_an_unknown_job_has_no_actions(site, action: str) -> None:
    reply = ask(site, f"job_{'0' * 32}", action)
    assert (reply.status_code, reply.json()["code"]) == (404, "job_not_found")


def test_a_paused_job_goes_on_in_its_run(site) -> None:
    job = site.submit()
    site.http.post(f"/jobs/{job['id']}/pause")
    assert site.http.get("/queue").json()["ready"] == 0
    resumed = site.http.post(f"/jobs/{job['id']}/resume").json()
    assert (resumed["status"], resumed["run"], resumed["queue"]["position"]) == ("queued", "tiny", 1)


def test_a_failed_job_goes_on_where_it_was_or_from_scratch_in_a_run_of_a_new_name(site) -> None:
    job = site.submit()
    claim = site.claim()
    site.make_run("tiny", job_id=job["id"])
    site.finish(claim, "failed")
    again = site.http.post(f"/jobs/{job['id']}/retry")
    assert (again.status_code, again.json()["run"], again.json()["error"]) == (202, "tiny", None)

    site.finish(site.claim(), "failed")
    scratch = site.http.post(f"/jobs/{job['id']}/retry", params={"from": "scratch"})
    assert (scratch.status_code, scratch.json()["run"]) == (202, "tiny-2")
    assert scratch.json()["links"]["run"] == "/runs/tiny-2"
    attempts = site.http.get(f"/jobs/{job['id']}").json()["attempts"]
    assert [(attempt["run"], attempt["result"]) for attempt in attempts] == [("tiny", "failed")] * 2


def test_there_are_two_ways_to_retry(site) -> None:
    job = site.submit()
    reply = site.http.post(f"/jobs/{job['id']}/retry", params={"from": "scrath"})
    (error,) = reply.json()["errors"]
    assert (reply.status_code, error["pointer"], error["nearest"]) == (422, "/from", ["scratch"])


@pytest.mark.parametrize(("status", "action"), [("paused", "resume"), ("cancelled", "resume"), ("failed", "retry")])
def test_workers_are_woken_when_a_job_is_queued_again(make_site, start_redis, status: str, action: str) -> None:
    server = start_redis()  # the shared service may still send wake-ups of the tests before this one
    site = make_site(server.url)
    job_id = site.submit()["id"]
    REACH[status](site, job_id)
    with redis.Redis.from_url(server.url) as client:
        eventually(lambda: client.llen(WAKE_UPS) == 1)  # of the submission
        assert site.http.post(f"/jobs/{job_id}/{action}").status_code == 202
        eventually(lambda: client.llen(WAKE_UPS) == 2)


@pytest.fixture
def paused(site) -> Any:
    """A paused training with a full state."""
    dataset = Dataset.named(DATASET, site.layout.dataset(DATASET))
    write_json(dataset.directory / "tokenizer.json", {"sha256": "0" * 64})
    job = site.submit()
    claim = site.claim()
    run, data_sha256 = site.make_run(job_id=job["id"], checkpoint=None), identify(dataset).sha256
    facts = {"attempt": 1, "step": 1, "full": True, "loss": 1.0, "val_loss": None, "data_sha256": data_sha256}
    run.publish("model_latest.pt", lambda file: file.write(b"state"), **facts)
    site.store.request_action(job["id"], "pause")
    site.finish(claim, "stopped")
    return job["id"]


def change_data(site: Any, first: int) -> str:
    """Replace the training tokens; the identity of the dataset then."""
    dataset = Dataset.named(DATASET, site.layout.dataset(DATASET))
    np.save(dataset.train, np.arange(first, first + 200, dtype=np.uint16))
    return identify(dataset).sha256


def test_a_job_does_not_go_on_with_other_data(site, paused: str) -> None:
    found = change_data(site, first=1)
    refused = site.http.post(f"/jobs/{paused}/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "data_changed")
    assert found in refused.json()["detail"]
    assert "tiny/model_latest.pt" in refused.json()["hint"]
    assert site.http.get(f"/jobs/{paused}").json()["status"] == "paused"
    was = change_data(site, first=0)
    assert was in refused.json()["detail"]
    assert site.http.post(f"/jobs/{paused}/resume").status_code == 202


def test_a_retry_from_scratch_takes_the_data_that_is_there(site, paused: str) -> None:
    site.http.post(f"/jobs/{paused}/resume")
    site.finish(site.claim(), "failed")
    change_data(site, first=1)
    assert site.http.post(f"/jobs/{paused}/retry").json()["code"] == "data_changed"
    assert site.http.post(f"/jobs/{paused}/retry?from=scratch").status_code == 202
