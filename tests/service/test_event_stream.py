"""Server-sent events of a job: order, resumption and many followers."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from tests.polling import eventually
from tests.service.sse import read_events
from worker.jobs.worker_store import EVENT_TAIL

STREAM = {"Accept": "text/event-stream"}


def read(site: Any, path: str, last: int | None = None) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Name, number and data of each event, as they come."""
    events = read_events(site.http, path, None if last is None else str(last))
    return ((name, None if number is None else int(number), data) for name, number, data in events)


def tell(site: Any, claim: Any, count: int, *, begin: int = 0) -> None:
    """Write events as the trainer does, and mirror them as the supervisor does."""
    writer = site.writer(claim)
    events = [writer.append("step", step=step, loss=1 / (step + 1)) for step in range(begin, begin + count)]
    writer.close()
    site.store.mirror(claim, events)


def test_a_stream_follows_a_job_to_its_end(site) -> None:
    job = site.submit()
    stream = read(site, job["links"]["events"])
    kind, number, present = next(stream)
    assert (kind, number, present["status"], present["terminal"]) == ("status", None, "queued", False)

    claim = site.claim()
    kind, _, running = next(stream)
    assert (kind, running["status"]) == ("status", "running")
    tell(site, claim, 3)
    assert [(kind, number, data["step"]) for kind, number, data in (next(stream) for _ in range(3))] == [
        ("step", 1, 0),
        ("step", 2, 1),
        ("step", 3, 2),
    ]
    tell(site, claim, 2, begin=3)
    site.finish(claim)
    rest = list(stream)
    assert [number for _, number, _ in rest if number] == [4, 5]
    assert (rest[-1][0], rest[-1][2]["status"], rest[-1][2]["terminal"]) == ("status", "succeeded", True)


def test_every_change_of_status_is_reported_even_when_many_come_at_once(site) -> None:
    job = site.submit()
    stream = read(site, job["links"]["events"])
    next(stream)
    claim = site.claim()
    site.store.request_action(claim.id, "cancel")
    site.finish(claim, "stopped")
    assert [data["status"] for kind, _, data in stream if kind == "status"] == ["running", "stopping", "cancelled"]


def test_a_stream_that_was_cut_goes_on_after_the_last_event(site) -> None:
    job = site.submit()
    claim = site.claim()
    tell(site, claim, 40)
    seen: list[int] = []
    for more in (7, 11, None):
        stream = read(site, job["links"]["events"], last=seen[-1] if seen else None)
        assert next(stream)[0] == "status"
        if more is None:
            tell(site, claim, 5, begin=40)
            site.finish(claim)
        numbers = (number for _, number, _ in stream if number)
        seen += [next(numbers) for _ in range(more)] if more else list(numbers)
        stream.close()
    assert seen == list(range(1, 46))


def test_events_that_redis_no_longer_holds_come_from_disk(site, redis_url: str) -> None:
    job = site.submit()
    claim = site.claim()
    count = EVENT_TAIL + 700
    tell(site, claim, count)
    assert site.store.events(claim.id)[0]["seq"] > 1
    site.finish(claim)
    assert [number for _, number, _ in read(site, job["links"]["events"]) if number] == list(range(1, count + 1))

    with redis.Redis.from_url(redis_url) as client:
        client.delete(f"headcount:job:{claim.id}:events")
    resumed = [number for _, number, _ in read(site, job["links"]["events"], last=count - 3) if number]
    assert resumed == [count - 2, count - 1, count]


@pytest.mark.alone
def test_many_followers_share_one_listener_and_leave_the_pool_alone(site, redis_url: str) -> None:
    job = site.submit()
    followers = 40  # more than the pool has connections
    following: list[int] = []

    def follow(_: int) -> list[int]:
        with httpx.stream(
            "GET", site.url + job["links"]["events"], headers=STREAM, timeout=30, trust_env=False
        ) as reply:
            following.append(reply.status_code)
            return [int(line[4:]) for line in reply.iter_lines() if line.startswith("id: ")]

    with ThreadPoolExecutor(followers) as threads:
        results = threads.map(follow, range(followers))
        eventually(lambda: len(following) == followers)
        began = time.monotonic()
        listed = site.http.get("/jobs")
        seconds = time.monotonic() - began
        claim = site.claim()
        tell(site, claim, 20)
        site.finish(claim)
    assert (listed.status_code, seconds < 1) == (200, True)
    assert following == [200] * followers
    assert [numbers for numbers in results if numbers != list(range(1, 21))] == []


def followed(site: Any, run: str) -> tuple[list[int], float]:
    """Numbers of the events that a follower of a short job is told, and how long it took."""
    job = site.submit(run)
    stream = read(site, job["links"]["events"])
    next(stream)
    claim, began = site.claim(), time.monotonic()
    tell(site, claim, 3)
    site.finish(claim)
    return [number for _, number, _ in stream if number], time.monotonic() - began


def test_changes_are_heard_of_again_after_a_time_when_nobody_followed(site) -> None:
    (first, _), (second, seconds) = followed(site, "first"), followed(site, "second")
    assert first == second == [1, 2, 3]
    assert seconds < 5  # what is not heard of shows with a ping, after 15 s


def test_a_silent_stream_says_that_it_is_there(make_site) -> None:
    site = make_site(ping_s=0.1)
    job = site.submit()
    with site.http.stream("GET", job["links"]["events"], headers=STREAM) as reply:
        assert next(line for line in reply.iter_lines() if line.startswith(":")) == ": ping"


def test_a_stream_ends_when_the_record_is_gone(make_site, redis_url: str) -> None:
    site = make_site(ping_s=0.1)
    job = site.submit()
    stream = read(site, job["links"]["events"])
    next(stream)
    with redis.Redis.from_url(redis_url) as client:
        client.delete(f"headcount:job:{job['id']}")
    assert list(stream) == []


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_an_unknown_job_has_no_stream(site, accept: str) -> None:
    reply = site.http.get("/jobs/job_0/events", headers={"Accept": accept})
    assert (reply.status_code, reply.json()["code"]) == (404, "job_not_found")
