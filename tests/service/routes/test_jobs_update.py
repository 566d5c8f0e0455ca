"""PATCH of priority and metadata."""

from typing import Any

import pytest


def patch(site: Any, job: dict[str, Any], body: dict[str, Any], if_match: str | None = None) -> Any:
    headers = {"Content-Type": "application/merge-patch+json"} | ({"If-Match": if_match} if if_match else {})
    return site.http.patch(job["links"]["self"], json=body, headers=headers)


def test_priority_and_metadata_change_and_the_rest_stays(site) -> None:
    job = site.submit(job={"metadata": {"why": "a test", "old": "yes"}})
    seen = site.http.get(job["links"]["self"])
    changed = patch(site, job, {"priority": 5, "metadata": {"why": "a better test", "old": None, "new": ""}})
    assert changed.status_code == 200
    assert (changed.json()["priority"], changed.json()["metadata"]) == (5, {"why": "a better test", "new": ""})
    assert seen.json() | {"priority": 5, "metadata": changed.json()["metadata"]} == changed.json()
    assert seen.headers["etag"] != changed.headers["etag"]
    again = site.http.get(job["links"]["self"])
    assert (again.json(), again.headers["etag"]) == (changed.json(), changed.headers["etag"])
    assert (again.headers["cache-control"], again.headers["etag"][0]) == ("no-store", '"')


def test_what_is_left_out_stays(site) -> None:
    job = site.submit(job={"metadata": {"why": "a test"}, "priority": 3})
    assert patch(site, job, {}).json()["priority"] == 3
    assert patch(site, job, {"priority": 4}).json()["metadata"] == {"why": "a test"}
    assert patch(site, job, {"metadata": {"why": None}}).json()["priority"] == 4


def test_a_change_can_be_bound_to_what_was_seen(site) -> None:
    job = site.submit()
    seen = site.http.get(job["links"]["self"]).headers["etag"]
    changed = patch(site, job, {"priority": 1}, if_match=seen)
    assert changed.status_code == 200

    stale = patch(site, job, {"priority": 2}, if_match=seen)
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert changed.headers["etag"] in stale.json()["detail"]
    assert site.http.get(job["links"]["self"]).json()["priority"] == 1
    assert patch(site, job, {"priority": 1}, if_match=seen).status_code == 200  # the answer got lost: it is so already


@pytest.mark.parametrize(
    ("if_match", "status"),
    [("*", 200), ('"99", {now}', 200), ("{now}", 200), ('"99"', 412), ("W/{now}", 412), ("junk", 412), ('"²"', 412)],
)
def test_if_match_compares_strong_tags(site, if_match: str, status: int) -> None:
    job = site.submit()
    now = site.http.get(job["links"]["self"]).headers["etag"]
    tag = if_match.replace("{now}", now).encode("latin-1")
    reply = site.http.patch(job["links"]["self"], json={"priority": 7}, headers={"If-Match": tag})
    assert reply.status_code == status, reply.text


def test_the_tag_follows_the_status_and_not_the_progress(site) -> None:
    job = site.submit()
    queued = site.http.get(job["links"]["self"]).headers["etag"]
    claim = site.claim()
    running = site.http.get(job["links"]["self"]).headers["etag"]
    writer = site.writer(claim)
    site.store.mirror(claim, [writer.append("step", step=1, loss=1.0)])
    writer.close()
    assert (running != queued, site.http.get(job["links"]["self"]).headers["etag"]) == (True, running)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"priorty": 1}, "/priorty"),
        ({"priority": 1001}, "/priority"),
        ({"priority": "1"}, "/priority"),
        ({"metadata": {"a": 1}}, "/metadata/a"),
        ({"run": "other"}, "/run"),
        ({"metadata": {"a": "x" * 513}}, "/metadata/a"),
    ],
)
def test_a_wrong_change_is_refused_with_its_place(site, body: dict[str, Any], pointer: str) -> None:
    reply = patch(site, site.submit(), body)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


def test_metadata_has_at_most_sixteen_pairs(site) -> None:
    job = site.submit(job={"metadata": {f"key{i}": "" for i in range(16)}})
    full = patch(site, job, {"metadata": {"one": "more"}})
    assert (full.status_code, full.json()["code"]) == (422, "invalid_parameter")
    assert "17" in full.json()["detail"]
    assert patch(site, job, {"metadata": {"key0": None, "one": "more"}}).status_code == 200


def test_an_unknown_job_cannot_be_changed(site) -> None:
    reply = site.http.patch("/jobs/job_0", json={"priority": 1}, headers={"If-Match": '"1"'})
    assert (reply.status_code, reply.json()["code"]) == (404, "job_not_found")


def test_a_higher_priority_moves_a_job_to_the_front(site) -> None:
    jobs = [site.submit(name) for name in ("one", "two", "three")]
    assert patch(site, jobs[2], {"priority": 1}).json()["queue"]["position"] == 1
    assert [job["run"] for job in site.http.get("/queue").json()["data"]] == ["three", "one", "two"]
    assert site.claim().run == "three"
