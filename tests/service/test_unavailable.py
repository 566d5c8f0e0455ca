"""What still answers, and how fast, while Redis is frozen or gone."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

STREAM = {"Accept": "text/event-stream"}
FREEZE: dict[str, Callable[[Any], None]] = {
    "frozen": lambda server: server.send(signal.SIGSTOP),
    "gone": lambda server: server.kill(),
}


@pytest.fixture
def own(make_site: Callable[..., Any], start_redis: Callable[..., Any]) -> Any:
    """A service whose Redis the test may stop, with a job that trains and a run that is done."""
    server = start_redis()
    site = make_site(server.url)
    site.server = server
    site.job = site.submit("tiny")
    site.claimed = site.claim()
    site.make_run("done")
    site.host = site.add_host()
    site.http.get("/attention/done/0")
    yield site
    server.send(signal.SIGCONT)


def timed(site: Any, method: str, path: str, **options: Any) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    reply = site.http.request(method, path, **options)
    return reply, time.monotonic() - began


@pytest.mark.parametrize("how", FREEZE)
def test_what_needs_the_queue_says_so_within_two_seconds(own, how: str) -> None:
    FREEZE[how](own.server)
    body = {"json": {"experiment_name": "x", "job": {"preset": "quickstart"}}}
    requests = [
        ("POST", "/jobs", body),
        ("GET", "/jobs", {}),
        ("GET", own.job["links"]["self"], {}),
        ("POST", own.job["links"]["cancel"], {}),
        ("GET", own.job["links"]["events"], {"headers": STREAM}),
        ("GET", own.job["links"]["logs"], {}),
    ] * 6
    with ThreadPoolExecutor(len(requests)) as threads:
        answers = list(threads.map(lambda ask: timed(own, ask[0], ask[1], **ask[2]), requests))
    for reply, seconds in answers:
        assert (reply.status_code, reply.json()["code"]) == (503, "queue_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert seconds < 2.3  # two, and what 36 at once cost a busy machine


@pytest.mark.parametrize("how", FREEZE)
def test_what_lies_on_disk_is_still_served(own, how: str) -> None:
    FREEZE[how](own.server)
    for path in ("/healthz", "/configs", "/runs", "/runs/done", "/attention/done/0"):
        reply, seconds = timed(own, "GET", path)
        assert reply.status_code == 200, reply.text
        assert seconds < 2
    unready, seconds = timed(own, "GET", "/readyz")
    assert unready.status_code == 503
    assert not unready.json()["checks"]["redis"]["ok"]
    assert seconds < 2.5


def test_generation_goes_on_with_the_hosts_that_were_known(own) -> None:
    ask = {"params": {"run": "done", "prompt": "Once"}}
    assert timed(own, "GET", "/generate", **ask)[0].status_code == 200
    own.server.kill()
    assert timed(own, "GET", "/generate", **ask)[0].status_code == 200


def test_a_stream_outlives_a_redis_that_stops_and_comes_back(own) -> None:
    seen: list[tuple[int | None, str]] = []
    writer = own.writer(own.claimed)
    with own.http.stream("GET", own.job["links"]["events"], headers=STREAM) as reply:
        lines = reply.iter_lines()
        writer.append("step", step=0)
        own.server.kill()
        first = next(line for line in lines if line.startswith("id: "))
        seen.append(first)
        own.server.start()
        own.store.mirror(own.claimed, [])
        writer.append("step", step=1)
        writer.close()
        own.finish(own.claimed)
        rest = list(lines)
    assert [first, *(line for line in rest if line.startswith("id: "))] == ["id: 1", "id: 2"]
    assert '"status": "succeeded"' in rest[-2]
