"""The application: start, shutdown, middleware and imports."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.polling import eventually
from tests.process import free_port

ROOT = Path(__file__).parents[2]


def test_the_service_never_loads_torch() -> None:
    program = "import sys, service.app; assert 'torch' not in sys.modules; assert 'datasets' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_health_needs_nobody_and_readiness_names_what_is_missing(site) -> None:
    assert site.http.get("/healthz").json() == {"status": "ok"}
    missing = site.http.get("/readyz")
    assert missing.status_code == 503
    assert missing.headers["content-type"] == "application/problem+json"
    assert {name: check["ok"] for name, check in missing.json()["checks"].items()} == {
        "data": True,
        "redis": True,
        "worker": False,
        "inference": False,
    }

    site.registry.register("workers", "w1", {"host": "here", "slots": 1, "gpus": []}, 60)
    site.registry.register("inference", "i1", {"url": "http://127.0.0.1:1"}, 60)
    assert site.http.get("/readyz").json()["status"] == "ready"


def test_the_root_leads_to_the_documentation(site) -> None:
    assert site.http.get("/").json()["links"]["docs"] == "/docs"


def test_head_is_get_without_its_body(site) -> None:
    reply = site.http.head("/configs")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["x-request-id"].startswith("req_")


def test_a_request_keeps_the_id_that_its_client_gave(site) -> None:
    reply = site.http.get("/nowhere", headers={"X-Request-Id": "abc-1"})
    assert (reply.headers["x-request-id"], reply.json()["request_id"]) == ("abc-1", "abc-1")


@pytest.mark.parametrize(
    ("number", "address"), [(signal.SIGINT, ""), (signal.SIGTERM, ""), (signal.SIGTERM, "/events")]
)
def test_an_open_event_stream_does_not_hold_up_the_end(
    number: signal.Signals, address: str, redis_url: str, tmp_path: Path
) -> None:
    port = free_port()
    settings = {"HEADCOUNT_DATA": str(tmp_path), "HEADCOUNT_REDIS_URL": redis_url}
    command = [sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            eventually(lambda: _answers(http))
            body = {"experiment_name": "held", "job": {"preset": "quickstart"}}
            events = http.post("/jobs", json=body).json()["links"]["events"]
            with http.stream("GET", address or events, headers={"Accept": "text/event-stream"}) as reply:
                lines = reply.iter_lines()
                assert next(line for line in lines if line.startswith("event"))
                server.send_signal(number)
                rest = list(lines)
            assert server.wait(timeout=60) is not None
    finally:
        server.kill()
        server.wait()
    assert not any(json.loads(line[6:]).get("terminal") for line in rest if line.startswith("data: "))


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.TransportError:
        return False
