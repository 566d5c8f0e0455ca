"""`headcount up` with a real Redis, worker, inference process and API."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.polling import eventually
from tests.process import is_over

START_S = 120.0


class Up:
    """One `headcount up`, with its output in a file."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data, self._log = data, data.with_name(f"{data.name}.out")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADCOUNT_")}
        command = [sys.executable, "-m", "headcount", "up", "--data", str(data), *(options or ("--port", "0"))]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> str:
        def said() -> bool:
            return words in self.said or self.process.poll() is not None

        eventually(said, START_S, describe=lambda: self.said)
        assert words in self.said
        return self.said

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=120)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Up] = []

    def one(*options: str) -> Up:
        started.append(Up(tmp_path / "data", *options))
        return started[-1]

    yield one
    for up in started:
        if up.process.poll() is None:
            up.end()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if not is_over(process)]


@pytest.mark.e2e
def test_up_serves_refuses_a_second_and_leaves_nothing(start) -> None:
    up = start()
    url = up.wait_for("Headcount is up").split("Headcount is up after ")[1].split()[2]
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    second = start()
    assert second.process.wait(timeout=30) == 1
    assert str(up.process.pid) in second.said
    family = up.family()
    assert len(family) >= 5  # redis, worker, inference, api, watch
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=60) == 0
    assert alive(family) == []
    assert not (up.data / "redis" / "redis.sock").exists()


@pytest.mark.e2e
def test_a_killed_parent_leaves_no_orphans(start) -> None:
    up = start()
    up.wait_for("Headcount is up")
    family = up.family()
    up.process.kill()
    up.process.wait()
    eventually(lambda: not alive(family), 40, describe=lambda: alive(family))


@pytest.mark.e2e
def test_interrupted_while_starting_is_130(start) -> None:
    up = start()
    up.wait_for("waiting for the API")
    family = up.family()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=60) == 130
    assert alive(family) == []


@pytest.mark.slow
@pytest.mark.e2e
def test_listening_for_other_machines_is_warned_about_and_answers_to_this_one_s_name(start) -> None:
    up = start("--host", "0.0.0.0", "--port", "0", "--root-path", "/lab")
    [warning] = [line for line in up.wait_for("warning: ").splitlines() if line.startswith("warning: ")]
    name = socket.gethostname().lower()
    assert name in warning
    port = httpx.URL(up.said.split("Headcount is up after ")[1].split()[2]).port
    told = {
        host: httpx.get(f"http://127.0.0.1:{port}/lab/", headers={"Host": f"{host}:{port}"}, trust_env=False)
        for host in ("localhost", name, "evil.example")
    }
    assert {host: reply.status_code for host, reply in told.items()} == {
        "localhost": 200,
        name: 200,
        "evil.example": 421,
    }
    assert told[name].json()["links"]["jobs"] == "/lab/jobs"


def test_a_prefix_that_is_no_path_is_bad_input(start) -> None:
    up = start("--root-path", "http://lab/headcount")
    assert up.process.wait(timeout=30) == 2
    assert "--root-path" in up.said


def test_a_port_in_use_is_a_clear_error(start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start("--port", str(port))
        assert up.process.wait(timeout=30) == 1
    assert f"127.0.0.1:{port}" in up.said
    assert "--port" in up.said
