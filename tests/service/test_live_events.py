"""Server-sent events of all jobs: snapshot, filters, resumption, pace, and a Redis that restarts."""

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from service.app import create_app
from service.deps import Services
from service.live_events import Interest
from service.settings import ServiceSettings
from tests.service.fake_host import Served
from tests.service.sse import Event, read_events
from worker.jobs.schemas import Progress

ALL = frozenset({"status", "progress", "queue"})


def progressed(site: Any, claim: Any, step: int) -> None:
    """Report progress as the supervisor does."""
    writer = site.writer(claim)
    event = writer.append("step", step=step, loss=1 / (step + 1))
    writer.close()
    site.store.mirror(claim, [event], Progress(step=step, max_steps=100, loss=event["loss"], tokens_per_s=10.0))


def until(stream: Iterator[Event], kind: str, **facts: Any) -> list[Event]:
    """The events up to the first of that type with these facts."""
    seen: list[Event] = []
    for event in stream:
        seen.append(event)
        if event[0] == kind and facts.items() <= event[2].items():
            return seen
    raise AssertionError(seen)


def statuses(events: list[Event], *, snapshot: bool = False) -> list[tuple[str, str]]:
    return [
        (data["job"], data["status"]) for kind, _, data in events if kind == "status" and data["snapshot"] is snapshot
    ]


def test_a_stream_begins_with_the_present_and_follows_every_job(site) -> None:
    first, second = site.submit("first")["id"], site.submit("second")["id"]
    claim = site.claim()
    progressed(site, claim, 7)
    stream = read_events(site.http, "/events")
    begin = until(stream, "queue")
    assert sorted(statuses(begin, snapshot=True)) == sorted([(first, "running"), (second, "queued")])
    assert all(re.fullmatch(r"\d+-\d+", known or "") for kind, known, _ in begin if kind == "status")
    assert [(known, data["job"], data["step"]) for kind, known, data in begin if kind == "progress"] == [
        (None, first, 7)
    ]
    assert (begin[-1][1], begin[-1][2]["queued"], begin[-1][2]["running"]) == (None, 1, 1)
    assert begin[-1][2]["data"] == [{"job": second, "position": 1, "jobs_ahead": 0, "eta_s": None}]

    site.finish(claim)
    site.claim()
    third = site.submit("third")["id"]
    live = until(stream, "status", job=third, status="queued")
    assert statuses(live) == [(first, "succeeded"), (second, "running"), (third, "queued")]
    until(stream, "queue", queued=1, running=1)


def test_a_stream_is_narrowed_to_jobs_and_types(site) -> None:
    first, second = site.submit("first")["id"], site.submit("second")["id"]
    stream = read_events(site.http, "/events", job=f"{second},job_{'0' * 32}", types="status")
    assert statuses([next(stream)], snapshot=True) == [(second, "queued")]
    site.finish(site.claim())
    site.claim()
    assert statuses([next(stream)]) == [(second, "running")]
    queues = read_events(site.http, "/events", job=first, types="queue")
    assert next(queues)[2] == {"queued": 0, "running": 1, "data": []}


def test_a_stream_goes_on_after_the_last_status_of_any_process(site, redis_url: str) -> None:
    other = Served(create_app(ServiceSettings(data=site.settings.data, redis_url=redis_url)))
    first = site.submit("first")["id"]
    stream = read_events(site.http, "/events", types="status")
    last = next(stream)[1]
    stream.close()
    claim = site.claim()
    site.finish(claim)
    with type(site.http)(base_url=other.url, timeout=10, trust_env=False) as http:
        for again in (read_events(http, "/events", last), read_events(http, "/events", after=last)):
            assert statuses(until(again, "queue")) == [(first, "running"), (first, "succeeded")]
            again.close()
    other.stop()


@pytest.mark.parametrize("last", ["1-1", "99999999999999-0", "none", ""])
def test_an_id_that_is_gone_gets_a_snapshot(site, last: str) -> None:
    job = site.submit()["id"]
    begin = until(read_events(site.http, "/events", last), "queue")
    assert (statuses(begin), statuses(begin, snapshot=True)) == ([], [(job, "queued")])


def test_progress_of_a_job_comes_at_most_once_a_second_and_the_last_is_not_lost(site) -> None:
    job = site.submit()["id"]
    claim = site.claim()
    stream = read_events(site.http, "/events", types="progress,status")
    until(stream, "progress", job=job)
    began = time.monotonic()
    for step in range(1, 31):
        progressed(site, claim, step)
        time.sleep(0.1)
    site.finish(claim)
    seconds = time.monotonic() - began
    seen = until(stream, "progress", step=30)
    steps = [data["step"] for kind, _, data in seen if kind == "progress"]
    assert steps == sorted(set(steps))
    assert 2 <= len(steps) <= seconds + 2


def test_a_slow_client_gets_the_present_and_not_all_that_it_missed(site) -> None:
    job = site.submit()["id"]

    async def miss_much() -> bytes:
        services = Services.of(site.settings)
        tasks = [asyncio.create_task(services.changes.listen()), asyncio.create_task(services.live.run())]
        stream = services.live.stream(Interest(ALL), await services.live.look(Interest(ALL), None))
        await anext(stream)
        await asyncio.to_thread(change_often)
        missed = await anext(stream)
        await stream.aclose()
        [task.cancel() for task in tasks]
        await asyncio.gather(*tasks, return_exceptions=True)
        await services.close()
        return missed

    def change_often() -> None:
        for _ in range(1100):
            site.store.request_action(job, "pause")
            site.store.request_action(job, "resume")

    missed = asyncio.run(miss_much())
    assert missed.count(b"event: status") == 1
    assert b'"snapshot": true' in missed


def test_a_stream_outlives_a_redis_that_restarts(
    make_site: Callable[..., Any], start_redis: Callable[..., Any]
) -> None:
    server = start_redis()
    site = make_site(server.url)
    site.submit("before")
    stream = read_events(site.http, "/events", types="status")
    next(stream)
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    after = site.submit("after")["id"]
    until(stream, "status", job=after, status="queued")
    site.claim()
    until(stream, "status", job=after, status="running")


def test_a_silent_stream_sends_comments(make_site: Callable[..., Any]) -> None:
    site = make_site(ping_s=0.1)
    with site.http.stream("GET", "/events", headers={"Accept": "text/event-stream"}) as reply:
        comments = (line for line in reply.iter_lines() if line.startswith(":"))
        assert list(itertools.islice(comments, 2)) == [": ping", ": ping"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [({"types": "statuses"}, "/types/0"), ({"job": "job_1"}, "/job/0"), ({"jobs": "x"}, "/jobs")],
)
def test_a_wrong_parameter_is_named(site, query: dict[str, str], pointer: str) -> None:
    reply = site.http.get("/events", params=query)
    assert (reply.status_code, [problem["pointer"] for problem in reply.json()["errors"]]) == (422, [pointer])


def test_events_are_no_json(site) -> None:
    assert site.http.get("/events", headers={"Accept": "application/json"}).status_code == 406
