"""Faults between clients and the API: concurrent submissions with one key, and a silent Redis."""

import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e

BODY = {"experiment_name": "once", "job": {"preset": "quickstart"}}


@pytest.mark.alone  # each submission has a second
def test_two_hundred_submissions_with_one_key_are_one_job(hurried, seen):
    _, site = hurried(lease_s=60.0, beat_s=15.0)
    site.start_api()

    def submit(client: httpx.Client) -> httpx.Response:
        return client.post("/jobs", json=BODY, headers={"Idempotency-Key": "the same"})

    limits = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=site.url, trust_env=False, timeout=60, limits=limits) as client:
        with ThreadPoolExecutor(200) as threads:
            replies = list(threads.map(lambda _: submit(client), range(200)))
        listed = client.get("/jobs").json()["data"]
    codes = Counter(reply.status_code for reply in replies)
    assert codes == {202: 1, 200: 199}
    assert sorted(job["kind"] for job in listed) == ["prepare", "train"]  # its data is made first, once too
    assert {reply.json()["id"] for reply in replies} == {job["id"] for job in listed if job["kind"] == "train"}
    seen(
        "200 POSTs with one key",
        f"{codes[202]} x 202 + {codes[200]} x 200, 1 training and the preparation it waits for",
    )


@pytest.mark.alone
@pytest.mark.parametrize("how", ["frozen", "stopped"])
def test_a_redis_that_does_not_answer_is_reported_to_the_client_soon(hurried, seen, how: str):
    server, site = hurried(lease_s=60.0, beat_s=15.0)
    site.start_api()
    with httpx.Client(base_url=site.url, trust_env=False, timeout=10) as client:
        assert client.get("/jobs").status_code == 200
        {"frozen": lambda: server.send(signal.SIGSTOP), "stopped": server.kill}[how]()
        took = [_refused(client, "GET", "/jobs"), _refused(client, "POST", "/jobs", json=BODY)]
        {"frozen": lambda: server.send(signal.SIGCONT), "stopped": server.start}[how]()
        assert client.get("/jobs").status_code == 200
    assert max(took) < 2
    assert "Traceback" not in site.log("api").read_text()
    seen(f"Redis {how}, API asked", f"503 and Retry-After after {max(took):.2f} s")


def _refused(client: httpx.Client, method: str, path: str, **options: Any) -> float:
    began = time.monotonic()
    reply = client.request(method, path, **options)
    assert (reply.status_code, reply.json()["code"]) == (503, "queue_unavailable")
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["retry-after"]) > 0
    return time.monotonic() - began
