"""Replies of every route, within two seconds, while Redis is frozen or gone."""

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from model_core.config import ModelConfig
from model_core.hf.hf_config import build_config
from service.app import create_app
from service.settings import ServiceSettings

pytestmark = pytest.mark.alone

STREAM = {"Accept": "text/event-stream"}
LIMIT_S = 2.0
FREEZE: dict[str, Callable[[Any], None]] = {
    "frozen": lambda server: server.send(signal.SIGSTOP),
    "gone": lambda server: server.kill(),
}


# Every operation of /openapi.json: what it answers without Redis, and what is asked. JOB is a job that runs.
SERVED, ABSENT, QUEUE, INCOMPLETE = 200, 404, "queue_unavailable", "not_ready"
CONFIG = {"json": {"experiment_name": "x", "job": {"preset": "quickstart"}}}
ASK = {"run": "done", "prompt": "Once"}
MODEL = {
    "data": {"name": "new"},
    "files": {"files": ("config.json", json.dumps(build_config(ModelConfig(n_layer=1, n_embd=8, n_head=2), 50256)))},
}
OPERATIONS: dict[tuple[str, str], tuple[int | str, str, dict[str, Any]]] = {
    ("get", "/"): (SERVED, "/", {}),
    ("get", "/healthz"): (SERVED, "/healthz", {}),
    ("get", "/readyz"): (INCOMPLETE, "/readyz", {}),
    ("get", "/configs"): (SERVED, "/configs", {}),
    ("get", "/configs/{name}"): (SERVED, "/configs/baseline", {}),
    ("post", "/configs/validate"): (SERVED, "/configs/validate", CONFIG),
    ("get", "/datasets"): (SERVED, "/datasets", {}),
    ("get", "/datasets/{name}"): (SERVED, "/datasets/words", {}),
    ("get", "/datasets/{name}/statistics"): (SERVED, "/datasets/words/statistics", {}),
    ("get", "/datasets/{name}/examples"): (SERVED, "/datasets/words/examples", {}),
    ("get", "/datasets/{name}/examples/{number}"): (SERVED, "/datasets/words/examples/0", {}),
    ("post", "/datasets"): (QUEUE, "/datasets", {"json": {"name": "new", "source": "stories"}}),
    ("delete", "/datasets/{name}"): (QUEUE, "/datasets/words", {}),
    ("get", "/runs"): (SERVED, "/runs", {}),
    ("post", "/runs"): (QUEUE, "/runs", MODEL),
    ("get", "/runs/{run}"): (SERVED, "/runs/done", {}),
    ("delete", "/runs/{run}"): (QUEUE, "/runs/done", {}),
    ("get", "/runs/{run}/samples"): (SERVED, "/runs/done/samples", {}),
    ("get", "/runs/{run}/report"): (SERVED, "/runs/done/report", {}),
    ("get", "/runs/{run}/checkpoints"): (SERVED, "/runs/done/checkpoints", {}),
    ("get", "/runs/{run}/checkpoints/{checkpoint}"): (SERVED, "/runs/done/checkpoints/best", {}),
    ("get", "/runs/{run}/checkpoints/{checkpoint}/content"): (SERVED, "/runs/done/checkpoints/best/content", {}),
    ("put", "/runs/{run}/checkpoints/{checkpoint}/pin"): (SERVED, "/runs/done/checkpoints/best/pin", {}),
    ("delete", "/runs/{run}/checkpoints/{checkpoint}/pin"): (SERVED, "/runs/done/checkpoints/best/pin", {}),
    ("delete", "/runs/{run}/checkpoints/{checkpoint}"): (ABSENT, "/runs/done/checkpoints/step=99", {}),
    ("get", "/runs/{run}/exports"): (SERVED, "/runs/done/exports", {}),
    ("post", "/runs/{run}/exports"): (QUEUE, "/runs/done/exports", {}),
    ("get", "/runs/{run}/heads"): (SERVED, "/runs/done/heads", {}),
    ("post", "/runs/{run}/ablations"): (QUEUE, "/runs/done/ablations", {"json": {"tokens": 64}}),
    ("get", "/runs/{run}/ablations"): (SERVED, "/runs/done/ablations", {}),
    ("get", "/runs/{run}/ablations/{name}"): (ABSENT, "/runs/done/ablations/none", {}),
    ("post", "/runs/{run}/distributions"): (QUEUE, "/runs/done/distributions", {}),
    ("get", "/runs/{run}/distributions"): (SERVED, "/runs/done/distributions", {}),
    ("get", "/runs/{run}/distributions/{name}"): (ABSENT, "/runs/done/distributions/none", {}),
    ("get", "/generate"): (SERVED, "/generate", {"params": ASK}),
    ("post", "/generate"): (SERVED, "/generate", {"json": ASK}),
    ("post", "/v1/completions"): (SERVED, "/v1/completions", {"json": {"model": "done", "prompt": "Once"}}),
    ("get", "/v1/models"): (SERVED, "/v1/models", {}),
    ("get", "/v1/models/{id}"): (SERVED, "/v1/models/done", {}),
    ("post", "/tokenize"): (SERVED, "/tokenize", {"json": {"run": "done", "text": "Once"}}),
    ("post", "/detokenize"): (SERVED, "/detokenize", {"json": {"run": "done", "tokens": [1]}}),
    ("post", "/score"): (SERVED, "/score", {"json": {"run": "done", "texts": ["Once"]}}),
    ("post", "/attention"): (201, "/attention", {"json": {"run": "done", "text": "One day, a cat"}}),
    ("get", "/attention/{run}"): (SERVED, "/attention/done", {}),
    ("delete", "/attention/{run}/{example}"): (ABSENT, "/attention/done/9", {}),
    ("get", "/attention/{run}/{example}"): (SERVED, "/attention/done/0", {}),
    ("get", "/attention/{run}/{example}/layer{layer}.{format}"): (SERVED, "/attention/done/0/layer01.svg", {}),
    ("get", "/attention/{run}/{example}/statistics"): (SERVED, "/attention/done/0/statistics", {}),
    ("get", "/attention/{run}/{example}/animation.{format}"): (409, "/attention/done/0/animation.png", {}),
    ("get", "/attention/{run}/{example}/rollout"): (SERVED, "/attention/done/0/rollout", {}),
    ("get", "/attention/{run}/{example}/weights"): (SERVED, "/attention/done/0/weights", {}),
    ("get", "/compare"): (SERVED, "/compare", {"params": {"runs": "done,other", "view": "curves"}}),
    ("get", "/jobs"): (QUEUE, "/jobs", {}),
    ("post", "/jobs"): (QUEUE, "/jobs", CONFIG),
    ("get", "/jobs/{job_id}"): (QUEUE, "/jobs/JOB", {}),
    ("patch", "/jobs/{job_id}"): (QUEUE, "/jobs/JOB", {"json": {"priority": 1}, "headers": {"If-Match": '"1", "2"'}}),
    ("delete", "/jobs/{job_id}"): (QUEUE, "/jobs/JOB", {"params": {"artifacts": "true"}}),
    ("post", "/jobs/{job_id}/cancel"): (QUEUE, "/jobs/JOB/cancel", {}),
    ("post", "/jobs/{job_id}/pause"): (QUEUE, "/jobs/JOB/pause", {}),
    ("post", "/jobs/{job_id}/resume"): (QUEUE, "/jobs/JOB/resume", {}),
    ("post", "/jobs/{job_id}/retry"): (QUEUE, "/jobs/JOB/retry", {"params": {"from": "scratch"}}),
    ("get", "/jobs/{job_id}/events"): (QUEUE, "/jobs/JOB/events", {"headers": STREAM}),
    ("get", "/jobs/{job_id}/logs"): (QUEUE, "/jobs/JOB/logs", {"headers": STREAM}),
    ("get", "/jobs/{job_id}/metrics"): (QUEUE, "/jobs/JOB/metrics", {}),
    ("get", "/events"): (QUEUE, "/events", {"headers": STREAM}),
    ("get", "/workers"): (QUEUE, "/workers", {}),
    ("get", "/gpus"): (QUEUE, "/gpus", {}),
    ("get", "/queue"): (QUEUE, "/queue", {}),
}


@pytest.fixture
def own(make_site: Callable[..., Any], start_redis: Callable[..., Any]) -> Any:
    """A service whose Redis the test may stop, with a job that trains and a run that is done and was looked at."""
    server = start_redis()
    site = make_site(server.url)
    site.server = server
    site.job = site.submit("tiny")
    site.claimed = site.claim()
    site.make_run("done")
    site.make_run("other", checkpoint=b"other weights")
    site.host = site.add_host()
    site.http.get("/attention/done/0")
    yield site
    server.send(signal.SIGCONT)


def timed(site: Any, method: str, path: str, **options: Any) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    reply = site.http.request(method, path, **options)
    return reply, time.monotonic() - began


def test_every_operation_has_its_case() -> None:
    told = create_app(ServiceSettings()).openapi()["paths"]
    assert {(method, path) for path, methods in told.items() for method in methods} == set(OPERATIONS)


@pytest.mark.parametrize("how", FREEZE)
def test_every_operation_answers_within_two_seconds_from_disk_or_says_when_to_ask_again(own, how: str) -> None:
    FREEZE[how](own.server)

    def ask(operation: tuple[str, str]) -> tuple[httpx.Response, float]:
        _, path, options = OPERATIONS[operation]
        return timed(own, operation[0], path.replace("JOB", own.job["id"]), **options)

    with ThreadPoolExecutor(len(OPERATIONS)) as threads:
        answers = dict(zip(OPERATIONS, threads.map(ask, OPERATIONS), strict=True))
    told = {operation: reply.status_code for operation, (reply, _) in answers.items()}
    told |= {operation: reply.json()["code"] for operation, (reply, _) in answers.items() if reply.status_code == 503}
    assert told == {operation: expected for operation, (expected, _, _) in OPERATIONS.items()}
    refused = [reply for reply, _ in answers.values() if reply.status_code == 503]
    assert {reply.headers["content-type"] for reply in refused} == {"application/problem+json"}
    assert min(int(reply.headers["retry-after"]) for reply in refused) > 0
    assert "Traceback" not in "".join(reply.text for reply in refused)
    assert {operation: seconds for operation, (_, seconds) in answers.items() if seconds > LIMIT_S} == {}


def test_readiness_says_that_redis_is_away(own) -> None:
    own.server.kill()
    assert not own.http.get("/readyz").json()["checks"]["redis"]["ok"]


@pytest.mark.parametrize("how", FREEZE)
def test_many_at_once_wait_no_longer(own, how: str) -> None:
    FREEZE[how](own.server)
    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(lambda _: timed(own, "GET", "/jobs"), range(40)))
    assert {reply.status_code for reply, _ in answers} == {503}
    assert max(seconds for _, seconds in answers) < LIMIT_S


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
