"""Jobs whose dependency is dead: they fail at once with the reason, and a retry looks again. Nothing waits for ever."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.service.conftest import TREE, Site, _shared_site, make_site, site
from worker.jobs.commands import ScriptCall
from worker.jobs.redis_client import PREFIX
from worker.jobs.schemas import JobError, Outcome
from worker.jobs.states import TERMINAL

__all__ = ["_shared_site", "make_site", "site"]  # fixtures

Job = dict[str, Any]
REFUSED = JobError(code="hub_terms_not_accepted", detail="accept the terms first", hint="open the dataset's page")
UNKNOWN = f"job_{'0' * 32}"


def training(name: str = "learns", *awaited: str, **data: Any) -> Job:
    sections = {"data": {"dataset": "tales", **data}, "job": {"depends_on": [*awaited]}}
    return {**TREE, "experiment_name": name, "model": {**TREE["model"], "vocab_size": 50304}, **sections}


def job(site: Site, job_id: str) -> Job:
    found: Job = site.http.get(f"/jobs/{job_id}").json()
    return found


def post(site: Site, path: str, body: Any = None) -> Job:
    reply = site.http.post(path, json=body)
    assert reply.status_code in {200, 202}, reply.text
    found: Job = reply.json()
    return found


def preparations(site: Site) -> list[str]:
    return [found["id"] for found in site.http.get("/jobs", params={"kind": "prepare"}).json()["data"]]


def recipe_of(site: Site, job_id: str) -> tuple[Any, str]:
    spec, recipe = site._redis.hmget(f"{PREFIX}job:{job_id}", "spec", "recipe")
    return json.loads(spec), recipe


# --- what kills a preparation, or any other job ----------------------------------------------------------------------


def cancel(site: Site, job_id: str) -> None:
    post(site, f"/jobs/{job_id}/cancel")


def fail(site: Site, job_id: str) -> None:
    claim = site.claim()
    assert claim.id == job_id
    site.store.finish(claim, Outcome("failed", REFUSED.detail, REFUSED))


def cancel_while_it_runs(site: Site, job_id: str) -> None:
    claim = site.claim()
    post(site, f"/jobs/{job_id}/cancel")
    site.finish(claim, "stopped")


def cancel_while_it_is_paused(site: Site, job_id: str) -> None:
    post(site, f"/jobs/{job_id}/pause")
    cancel(site, job_id)


def crash_too_often(site: Site, job_id: str) -> None:
    for _ in range(site.settings.crash_budget):
        site.finish(site.claim(), "crashed")


def delete(site: Site, job_id: str) -> None:
    cancel(site, job_id)
    assert site.http.delete(f"/jobs/{job_id}").status_code == 204


def delete_with_its_files(site: Site, job_id: str) -> None:
    cancel(site, job_id)
    assert site.http.delete(f"/jobs/{job_id}", params={"artifacts": "true"}).status_code == 204


def forget(site: Site, job_id: str) -> None:
    """Redis lost the record, and what refers to it; a janitor looks every few seconds."""
    status = job(site, job_id)["status"]
    keys = site._redis.keys(f"{PREFIX}job:{job_id}*")
    site._redis.delete(*keys, f"{PREFIX}dataset:tales")
    of_the_kind = ("jobs:kind:prepare", "jobs:dataset:tales", "makers:tales")
    for index in ("jobs", "ready", "ready:0", f"jobs:status:{status}", *of_the_kind):
        site._redis.zrem(f"{PREFIX}{index}", job_id)
    site.store.run(ScriptCall("transitions.reap", {"crash_budget": 3, "error": "{}"}, dict))


LOSSES = [
    cancel,
    fail,
    cancel_while_it_runs,
    cancel_while_it_is_paused,
    crash_too_often,
    delete,
    delete_with_its_files,
    forget,
]
Loss = Callable[[Site, str], None]


# --- ways in which a training comes to wait for a preparation; both ids ----------------------------------------------


def by_its_source(site: Site) -> tuple[str, str]:
    found = post(site, "/jobs", training(source="stories"))
    [preparation] = found["waiting_for"]
    return found["id"], preparation


def by_the_name_of_a_dataset_that_is_being_prepared(site: Site) -> tuple[str, str]:
    tokenizer = {"type": "bpe", "vocab_size": 300}
    preparation = post(site, "/datasets", {"name": "tales", "source": "stories", "tokenizer": tokenizer, "seed": 7})
    return post(site, "/jobs", training())["id"], preparation["id"]


def by_depends_on(site: Site) -> tuple[str, str]:
    preparation = post(site, "/datasets", {"name": "tales", "source": "stories"})
    return post(site, "/jobs", training("learns", preparation["id"]))["id"], preparation["id"]


def as_an_earlier_version_recorded_it(site: Site) -> tuple[str, str]:
    waiting, preparation = by_its_source(site)
    fields = ("preparation", "preparation_spec", "preparation_recipe")
    site._redis.hdel(f"{PREFIX}job:{waiting}", *fields)
    site._redis.hset(f"{PREFIX}job:{waiting}", "depends_on", preparation)
    return waiting, preparation


Way = Callable[[Site], tuple[str, str]]
DEATHS: list[tuple[Way, Loss]] = [
    *((by_its_source, lose) for lose in LOSSES),
    (by_the_name_of_a_dataset_that_is_being_prepared, fail),
    (by_the_name_of_a_dataset_that_is_being_prepared, delete),
    (by_depends_on, cancel),
]


@pytest.mark.parametrize(("wait", "lose"), [*DEATHS, (by_depends_on, delete), (by_depends_on, forget)])
def test_a_training_fails_with_its_preparation_and_a_retry_prepares_anew(site: Site, wait: Way, lose: Loss) -> None:
    waiting, preparation = wait(site)
    made = recipe_of(site, preparation)
    assert job(site, waiting)["waiting_for"] == [preparation]
    lose(site, preparation)
    failed = job(site, waiting)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "dependency_failed")
    assert preparation in failed["error"]["detail"]
    assert "depends_on" not in failed["error"]["hint"]  # retrying is enough, however it came to wait

    again = post(site, f"/jobs/{waiting}/retry")
    [anew] = again["waiting_for"]
    assert (again["status"], anew != preparation, job(site, anew)["kind"]) == ("queued", True, "prepare")
    assert recipe_of(site, anew) == made
    claim = site.claim()
    assert claim.id == anew
    site.finish(claim)
    assert job(site, waiting)["waiting_for"] == []
    assert site.claim().id == waiting


@pytest.mark.parametrize("lose", LOSSES[:2])
def test_a_job_of_an_earlier_version_is_prepared_anew_too(site: Site, lose: Loss) -> None:
    waiting, preparation = as_an_earlier_version_recorded_it(site)
    lose(site, preparation)
    assert job(site, waiting)["error"]["code"] == "dependency_failed"
    [anew] = post(site, f"/jobs/{waiting}/retry")["waiting_for"]
    assert (anew != preparation, job(site, anew)["kind"]) == (True, "prepare")


@pytest.mark.parametrize(("wait", "lose"), [*DEATHS, (as_an_earlier_version_recorded_it, cancel)])
def test_a_retry_takes_the_dataset_that_is_ready_by_now(site: Site, wait: Way, lose: Loss) -> None:
    waiting, preparation = wait(site)
    lose(site, preparation)
    site.add_dataset("tales")
    again = post(site, f"/jobs/{waiting}/retry")
    assert (again["status"], again["waiting_for"], again["queue"]["position"]) == ("queued", [], 1)


def test_a_retry_joins_a_preparation_that_was_started_since(site: Site) -> None:
    waiting, preparation = by_its_source(site)
    cancel(site, preparation)
    since = post(site, "/datasets", {"name": "tales", "source": "stories"})["id"]
    assert post(site, f"/jobs/{waiting}/retry")["waiting_for"] == [since]
    assert preparations(site) == [since, preparation]


@pytest.mark.parametrize("action", ["resume", "retry"])
def test_a_retry_waits_for_the_same_preparation_if_that_goes_on(site: Site, action: str) -> None:
    waiting, preparation = by_its_source(site)
    {"resume": cancel, "retry": fail}[action](site, preparation)
    post(site, f"/jobs/{preparation}/{action}")
    assert job(site, waiting)["status"] == "failed"  # a person decides
    assert post(site, f"/jobs/{waiting}/retry")["waiting_for"] == [preparation]


def test_a_retry_is_refused_while_another_dataset_of_that_name_is_made(site: Site) -> None:
    waiting, preparation = by_its_source(site)
    cancel(site, preparation)
    other = post(site, "/datasets", {"name": "tales", "source": "pydoc"})["id"]
    refused = site.http.post(f"/jobs/{waiting}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_exists")
    assert job(site, waiting)["status"] == "failed"
    assert site.http.post("/jobs", json=training(dataset="words")).status_code == 202  # its name is free
    cancel(site, other)
    refused = site.http.post(f"/jobs/{waiting}/retry")
    assert (refused.json()["code"], preparations(site)) == ("run_exists", [other, preparation])


@pytest.mark.parametrize("lose", [cancel, delete, forget])
def test_a_training_that_was_paused_while_it_waited_looks_when_it_is_resumed(site: Site, lose: Loss) -> None:
    waiting, preparation = by_its_source(site)
    post(site, f"/jobs/{waiting}/pause")
    lose(site, preparation)
    assert job(site, waiting)["status"] == "paused"
    [anew] = post(site, f"/jobs/{waiting}/resume")["waiting_for"]
    assert anew != preparation


def test_two_trainings_share_the_preparation_anew(site: Site) -> None:
    first, preparation = by_its_source(site)
    second = post(site, "/jobs", training("second", source="stories"))["id"]
    cancel(site, preparation)
    waiting = [post(site, f"/jobs/{found}/retry")["waiting_for"] for found in (first, second)]
    assert waiting[0] == waiting[1] != [preparation]


def test_a_reason_to_act_upon_is_passed_on(site: Site) -> None:
    waiting, preparation = by_its_source(site)
    fail(site, preparation)
    error = job(site, waiting)["error"]
    assert REFUSED.detail in error["detail"]
    assert error["hint"].startswith(REFUSED.hint)


# --- dependencies that a person wrote --------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [cancel, fail])
def test_a_dependency_that_is_dead_at_submission_fails_the_job_at_once(site: Site, lose: Loss) -> None:
    first = site.submit("first")["id"]
    lose(site, first)
    found = post(site, "/jobs", training("second", first, source="stories"))
    assert (found["status"], found["error"]["code"]) == ("failed", "dependency_failed")
    assert first in found["error"]["hint"]
    assert "depends_on" in found["error"]["hint"]
    assert preparations(site) == []  # for nobody

    post(site, f"/jobs/{first}/{'resume' if lose is cancel else 'retry'}")
    [*awaited] = post(site, f"/jobs/{found['id']}/retry")["waiting_for"]
    assert awaited == [first, *preparations(site)]


@pytest.mark.parametrize("lose", [delete, delete_with_its_files, lambda site, job_id: None])
def test_a_dependency_that_is_deleted_or_unknown_at_submission_is_refused(site: Site, lose: Loss) -> None:
    first = site.submit("first")["id"]
    lose(site, first)
    awaited = UNKNOWN if site.http.get(f"/jobs/{first}").is_success else first
    refused = site.http.post("/jobs", json=training("second", awaited, source="stories"))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/job/depends_on/0")
    assert preparations(site) == []


def test_a_chain_fails_and_is_brought_to_its_end_by_retries(site: Site) -> None:
    first = site.submit("first")["id"]
    test = {"experiment_name": "first", "execution": {"train": False, "test": True}, "job": {"depends_on": [first]}}
    tested = post(site, "/jobs", test)["id"]
    exported = post(site, "/jobs", {"experiment_name": "first", "job": {"kind": "export", "depends_on": [tested]}})[
        "id"
    ]
    chain = [tested, exported]
    cancel(site, first)
    assert [job(site, found)["error"]["code"] for found in chain] == ["dependency_failed"] * 2

    assert post(site, f"/jobs/{exported}/retry")["status"] == "failed"  # what it waits for has still failed
    post(site, f"/jobs/{first}/resume")
    assert post(site, f"/jobs/{tested}/retry")["waiting_for"] == [first]
    assert post(site, f"/jobs/{exported}/retry")["waiting_for"] == [tested]
    for expected in (first, tested, exported):
        claim = site.claim()
        assert claim.id == expected
        site.finish(claim)
    assert all(job(site, found)["status"] == "succeeded" for found in chain)


def test_a_paused_dependency_keeps_its_dependents_waiting(site: Site) -> None:
    first = site.submit("first")["id"]
    second = post(site, "/jobs", training("second", first, dataset="words"))["id"]
    post(site, f"/jobs/{first}/pause")
    assert (job(site, second)["status"], job(site, second)["waiting_for"]) == ("queued", [first])
    post(site, f"/jobs/{first}/resume")
    site.finish(site.claim())
    assert (job(site, second)["waiting_for"], job(site, second)["queue"]["position"]) == ([], 1)


@pytest.mark.parametrize("action", ["resume", "retry"])
def test_what_is_queued_again_fails_at_once_while_its_dependency_is_dead(site: Site, action: str) -> None:
    first = site.submit("first")["id"]
    second = post(site, "/jobs", training("second", first, dataset="words"))["id"]
    if action == "resume":
        post(site, f"/jobs/{second}/pause")
    cancel(site, first)
    again = post(site, f"/jobs/{second}/{action}")
    assert (again["status"], again["error"]["code"]) == ("failed", "dependency_failed")
    assert site.http.delete(f"/jobs/{first}").status_code == 204
    again = post(site, f"/jobs/{second}/retry")
    assert (again["status"], first in again["error"]["detail"]) == ("failed", True)


def test_what_a_person_did_not_write_is_not_in_depends_on(site: Site) -> None:
    waiting, preparation = by_its_source(site)
    assert (job(site, waiting)["depends_on"], job(site, waiting)["waiting_for"]) == ([], [preparation])


def test_nothing_waits_for_ever(site: Site) -> None:
    """Records that an earlier version, or a Redis that lost some, left behind: the next look of a janitor ends them."""
    first = site.submit("first")["id"]
    waiting = [post(site, "/jobs", training(name, first, dataset="words"))["id"] for name in ("dead", "done", "there")]
    cancel(site, first)
    key = f"{PREFIX}job:"
    done, there = site.submit("fifth")["id"], site.submit("sixth")["id"]
    site.finish(site.claim())
    for found, awaited in zip(waiting, (first, done, there), strict=True):
        site._redis.hset(key + found, mapping={"status": "queued", "waiting_for": awaited})
        site._redis.zrem(f"{PREFIX}jobs:status:failed", found)
        site._redis.zadd(f"{PREFIX}jobs:status:queued", {found: 1})
    site.store.run(ScriptCall("transitions.reap", {"crash_budget": 3, "error": "{}"}, dict))
    states = [(job(site, found)["status"], job(site, found)["waiting_for"]) for found in waiting]
    assert states == [("failed", [first]), ("queued", []), ("queued", [there])]
    cancel(site, there)
    assert job(site, waiting[2])["status"] in TERMINAL
