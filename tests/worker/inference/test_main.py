"""The inference process: its socket, and its registration in a real Redis that starts late."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.polling import TIMEOUT_S, eventually
from worker.inference.__main__ import listen
from worker.jobs.redis_client import Registry

START_S = 120.0  # it loads torch


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_accepted_connection_sends_small_replies_at_once(host: str) -> None:
    async def nodelay() -> int:
        accepted: asyncio.Queue[int] = asyncio.Queue()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.put_nowait(option)
            writer.close()

        listening = listen(host, 0)
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.close()
            return await accepted.get()

    assert asyncio.run(nodelay()) == 1


def is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE


def test_a_taken_port_is_an_error_of_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, check=is_taken):
        listen("127.0.0.1", taken.getsockname()[1])


@contextlib.contextmanager
def killed_in_the_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Leaving a `Popen` waits for its process without a limit, also when an assertion failed and nothing ended it."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_it_registers_when_redis_comes_and_deregisters_on_sigterm(
    start_redis: Callable[..., Any], connected: Callable[..., Any], tmp_path: Path
) -> None:
    redis = start_redis()
    redis.kill()
    log, command = tmp_path / "log", [sys.executable, "-m", "worker.inference", "--threads", "1"]
    environment = {**os.environ, "HEADCOUNT_DATA": str(tmp_path), "HEADCOUNT_REDIS_URL": redis.url}
    environment |= {"HEADCOUNT_INFERENCE_DEVICE": "cpu", "HEADCOUNT_INFERENCE_WEIGHTS": "int8"}
    with (
        log.open("wb") as stderr,
        killed_in_the_end(subprocess.Popen(command, env=environment, stderr=stderr)) as process,
    ):
        eventually(
            lambda: "inference ready" in log.read_text() or process.poll() is not None, START_S, describe=log.read_text
        )
        url = next(word[4:] for word in log.read_text().split() if word.startswith("url="))
        registry = Registry(connected(redis.start().url, for_api=False))
        info = eventually(lambda: registry.alive("inference"), describe=log.read_text)[0]

        assert (info["url"], info["device"], info["pid"], info["weights"]) == (url, "cpu", process.pid, "int8")
        assert httpx.get(f"{url}/healthz", timeout=TIMEOUT_S).json()["models"] == info["models"] == []

        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert registry.alive("inference") == []
