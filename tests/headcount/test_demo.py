"""The demo, against canned replies and as a whole."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from headcount.client import Client
from headcount.demo import DemoFailed, cancelled_on_interrupt, require_success, submit_quickstart, write


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://service", httpx.MockTransport(handler))


def test_a_second_demo_takes_the_next_free_name() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if "run" in request.url.params:
            return httpx.Response(202, json={"id": "job_1", "run": request.url.params["run"]})
        return httpx.Response(409, json={"code": "run_exists", "detail": "taken", "next_free": "quickstart-2"})

    assert submit_quickstart(client_of(serve))["run"] == "quickstart-2"


def test_an_interrupted_demo_cancels_its_job() -> None:
    asked: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(202, json={})

    with pytest.raises(KeyboardInterrupt), cancelled_on_interrupt(client_of(serve), "job_1"):
        raise KeyboardInterrupt
    assert asked == ["POST /jobs/job_1/cancel"]


def test_short_texts_are_drawn_again() -> None:
    seeds: list[int] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seeds.append(json.loads(request.content)["seed"])
        return httpx.Response(200, json={"choices": [{"text": " word" * 30 * len(seeds)}]})

    assert len(write(client_of(serve), "quickstart").split()) >= 60
    assert seeds == [1, 2]


def test_a_job_that_failed_says_why_and_where_to_look() -> None:
    error = {"code": "non_finite_loss", "detail": "the loss is nan"}
    job = {"id": "job_1", "run": "quickstart", "status": "failed", "error": error}
    with pytest.raises(DemoFailed, match=r"non_finite_loss.*exp/quickstart/logs/log\.txt"):
        require_success(job, Path("data-demo"))


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_the_demo_works_twice(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADCOUNT_")}
    command = [sys.executable, "-m", "headcount", "demo", "--data", str(tmp_path / "d")]
    for run in ("quickstart", "quickstart-2"):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        pictures = sorted(path.name for path in (tmp_path / "d" / "attention_outputs" / run / "0").glob("layer*.png"))
        assert pictures == ["layer00.png", "layer01.png", "layer02.png", "layer03.png"]
        assert f"attention/{run}/0" in done.stdout
