"""The whole service, started with `headcount up`, and a job that takes seconds."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.polling import eventually
from tests.process import free_port

TINY = {
    "experiment_name": "tiny",
    "model": {"n_layer": 3, "n_embd": 16, "n_head_list": [4, 2, 1], "vocab_size": 384, "block_size": 32},
    "training": {
        "batch_size": 2,
        "sequence_length": 16,
        "total_batch_size": 32,
        "max_lr": 0.01,
        "min_lr": 0.001,
        "warmup_steps": 2,
        "max_steps": 30,
    },
    "data": {
        "dataset": "text",
        "source": "file:uploads/text.txt",
        "tokenizer": {"type": "bpe", "vocab_size": 384},
    },
    "evaluation": {"val_loss_every": 10, "val_max_steps": 2, "sample_num": 0, "checkpoint_every": 20},
    "device": {"device": "cpu", "dtype": "float32", "threads": 1},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict]:
    """A training that takes a second, under a name; keyword arguments replace keys of sections."""

    def tree(name: str, **sections: dict) -> dict:
        changed = {section: {**TINY.get(section, {}), **keys} for section, keys in sections.items()}
        return {**TINY, **changed, "experiment_name": name}

    return tree


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    data: Path
    pid: int
    client: httpx.Client

    def submit(self, tree: dict, **headers: str) -> dict:
        """Submit a job that must be accepted."""
        reply = self.client.post("/jobs", json=tree, headers=headers)
        assert reply.status_code in {200, 202}, reply.text
        return reply.json()

    def job(self, job_id: str) -> dict:
        """Read a job."""
        return self.client.get(f"/jobs/{job_id}").json()

    def until(self, job_id: str, good: Callable[[dict], bool], timeout_s: float = 90) -> dict:
        """Wait for something of a job."""

        def reached() -> dict | None:
            job = self.job(job_id)
            if good(job):
                return job
            assert job["status"] != "failed", job
            return None

        job = eventually(reached, timeout_s, every_s=0.05, describe=lambda: self.job(job_id))
        assert job is not None
        return job

    def finished(self, job_id: str) -> dict:
        """Wait until a job has succeeded."""
        return self.until(job_id, lambda job: job["status"] == "succeeded")


@pytest.fixture(scope="session")
def make_data_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A data root with a text to learn from."""

    def make() -> Path:
        data = tmp_path_factory.mktemp("data")
        words, rng = "the cat dog sat ran on a mat hill and saw red blue bird tree".split(), random.Random(0)
        documents = [" ".join(rng.choices(words, k=rng.randint(20, 40))).capitalize() + "." for _ in range(300)]
        (data / "uploads").mkdir()
        (data / "uploads" / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
        return data

    return make


@contextlib.contextmanager
def serve(data: Path, log: Path, **settings: str) -> Iterator[Service]:
    """`headcount up` with one slot and a short lease, until the block ends; what it says is in `log`."""
    port = free_port()
    command = [sys.executable, "-m", "headcount", "up", "--port", str(port), "--data", str(data), "--slots", "1"]
    short = {"HEADCOUNT_LEASE_S": "6", "HEADCOUNT_BEAT_S": "1", "HEADCOUNT_JANITOR_S": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **short, **settings}, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process, log)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Service(url, data, process.pid, client)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def service(make_data_root: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that leave it as it was."""
    with serve(make_data_root(), tmp_path_factory.mktemp("log") / "up.log") as service:
        yield service


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[Service]]:
    """Start a service of the test's own: ``with serving(data, log, HEADCOUNT_...=...) as service``."""
    return serve


def _wait_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/readyz").status_code == 200
        return False

    eventually(ready, 90, every_s=0.1, describe=log.read_text)
