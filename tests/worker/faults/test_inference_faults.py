"""Inference processes that are killed while they answer."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_core.storage.checkpoints import BEST
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import train_bpe
from service.app import create_app
from service.inference_client import ranked
from service.settings import ServiceSettings
from tests.polling import eventually
from tests.service.fake_host import Served
from tests.worker.inference.test_generation import CORPUS, _config, _publish
from worker.jobs.redis_client import Registry

DEADLINE_S = 60.0
ASK = {"run": "tiny", "prompt": "One day", "max_new_tokens": 120, "ignore_eos": True, "seed": 1}

pytestmark = pytest.mark.slow


class Cluster:
    """An API and inference processes over one Redis and one data root."""

    def __init__(self, root: Path, redis_url: str, registry: Registry) -> None:
        self._root, self._registry = root, registry
        run = Run.create(Layout.under(root).run("tiny"), _config("tiny"))
        _publish(run, train_bpe(CORPUS, 280), BEST, seed=1, step=10)
        self._environment = {**os.environ, "HEADCOUNT_DATA": str(root), "HEADCOUNT_REDIS_URL": redis_url}
        self._environment |= {"HEADCOUNT_INFERENCE_DEVICE": "cpu", "HEADCOUNT_INFERENCE_WEIGHTS": "fp32"}
        self._api = Served(create_app(ServiceSettings(data=root, redis_url=redis_url)))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.client = httpx.Client(base_url=self._api.url, timeout=DEADLINE_S, trust_env=False)

    def start(self, count: int) -> None:
        command = [sys.executable, "-m", "worker.inference", "--threads", "1"]
        with (self._root / "log").open("ab") as log:
            self._processes += [subprocess.Popen(command, env=self._environment, stderr=log) for _ in range(count)]
        eventually(lambda: len(self._registry.alive("inference")) == count, describe=(self._root / "log").read_text)

    def kill(self, url: str) -> None:
        """Kill the process at an address."""
        pid = next(info["pid"] for info in self._registry.alive("inference") if info["url"] == url)
        process = next(process for process in self._processes if process.pid == pid)
        process.kill()
        process.wait()

    @property
    def by_rank(self) -> list[str]:
        """Addresses in the order in which the API asks them."""
        return ranked([info["url"] for info in self._registry.alive("inference")], "tiny", BEST)

    def close(self) -> None:
        self.client.close()
        self._api.stop()
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path, redis_url: str, connected: Callable[..., Any]) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "data", redis_url, Registry(connected(redis_url, for_api=False)))
    yield made
    made.close()


def outcome(client: httpx.Client, stream: bool) -> tuple[int, str]:
    """Status and text; of a stream that broke off the status of its error and the text until then."""
    with client.stream("POST", "/generate", json={**ASK, "stream": stream}) as reply:
        body = reply.read()
    if reply.status_code != 200 or not stream:
        return reply.status_code, "" if reply.status_code != 200 else json.loads(body)["choices"][0]["text"]
    events = [event.split(b"data: ", 1) for event in body.split(b"\n\n") if event]
    pieces = [json.loads(data) for _, data in events]
    text = "".join(piece["text"] for piece in pieces[:-1])
    return pieces[-1].get("status", 200), text


def test_a_process_killed_under_load_costs_no_answer_that_had_not_begun(cluster: Cluster) -> None:
    cluster.start(2)
    _, text = outcome(cluster.client, stream=False)
    running, slowest = threading.Event(), 0.0

    def ask(number: int) -> list[tuple[int, str]]:
        found, last = [], False
        while not last:
            last = running.is_set()
            found.append(outcome(cluster.client, stream=number % 2 == 0))
        return found

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        first = cluster.by_rank[0]
        eventually(lambda: httpx.get(f"{first}/healthz").json()["open_requests"] >= 4)
        cluster.kill(first)
        killed = time.monotonic()
        running.set()
        answers = [answer for future in asked for answer in future.result(DEADLINE_S)]
        slowest = time.monotonic() - killed

    assert slowest < DEADLINE_S
    assert {status for status, _ in answers} <= {200, 503}
    assert all(got == text for status, got in answers if status == 200)
    assert all(text.startswith(got) for status, got in answers if status == 503)
    assert outcome(cluster.client, stream=False) == (200, text)


def test_without_a_process_left_there_is_a_503_at_once(cluster: Cluster) -> None:
    cluster.start(1)
    assert outcome(cluster.client, stream=False)[0] == 200

    cluster.kill(cluster.by_rank[0])
    began = time.monotonic()
    reply = cluster.client.post("/generate", json=ASK)

    assert (reply.status_code, reply.json()["code"]) == (503, "inference_unavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert time.monotonic() - began < 5
