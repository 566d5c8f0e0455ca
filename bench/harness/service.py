"""A service that is started with `headcount up` on a data root of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[2]
_START_S, _STOP_S, _JOB_S = 120.0, 60.0, 180.0


@contextlib.contextmanager
def serve(data: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Run the service until the block ends.

    Args:
        data: Data root.
        environment: All environment variables.

    Yields:
        Host and port of the API.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
    command = [sys.executable, "-m", "headcount", "up", "--data", str(data), "--port", str(address[1]), "--slots", "1"]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), environment.get("PYTHONPATH"))))
    with (data / "up.log").open("w") as log:
        process = subprocess.Popen(command, env={**environment, "PYTHONPATH": path}, stdout=log, stderr=log)
    try:
        _until(lambda: _is_ready(address), process, _START_S)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_S)


@contextlib.contextmanager
def training(address: tuple[str, int], name: str) -> Iterator[None]:
    """Train the quickstart model while the block runs.

    Args:
        address: Host and port of the API.
        name: Name of the run.
    """
    endless = {"max_steps": 1_000_000}
    tree = {"experiment_name": name, "training": endless, "job": {"preset": "quickstart"}}
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=30, trust_env=False) as client:
        job = client.post("/jobs", json=tree).raise_for_status().json()["id"]

        def status() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/jobs/{job}").raise_for_status().json()
            return found

        _until(lambda: (status()["progress"] or {}).get("step", 0) > 20, None, _JOB_S)
        try:
            yield
        finally:
            client.post(f"/jobs/{job}/cancel")
            _until(lambda: bool(status()["terminal"]), None, _JOB_S)


def _is_ready(address: tuple[str, int]) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{address[0]}:{address[1]}/readyz", timeout=5, trust_env=False).is_success
    return False


def _until(reached: Callable[[], bool], process: subprocess.Popen[bytes] | None, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if process is not None and process.poll() is not None:
            raise SystemExit(f"headcount up ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit("the service did not become ready in time")
        time.sleep(0.1)
