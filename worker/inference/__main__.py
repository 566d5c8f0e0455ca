"""``python -m worker.inference``: serve trained models on this machine.

Listens, registers its address in Redis and renews that every two seconds, also after Redis was away. On SIGTERM or
SIGINT it exits within seconds, whatever its threads are doing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import uvicorn
from pydantic import ValidationError
from redis import RedisError

from model_core.errors import DeviceUnavailable
from worker.inference.app import create_app
from worker.inference.model_cache import Models
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry, connect
from worker.jobs.settings import InferenceSettings, JobSettings

log = logging.getLogger(__name__)

EVERY_S, TTL_S = 2.0, 10.0


class Announcer:
    """A thread that announces one inference process.

    Args:
        registry: Where to.
        name: The process's id among its kind.
        facts: What others may know; asked anew each time.
        tick: Housekeeping done at the same pace.
    """

    def __init__(
        self, registry: Registry, name: str, facts: Callable[[], dict[str, Any]], tick: Callable[[], None]
    ) -> None:
        self._registry, self._name, self._facts, self._tick = registry, name, facts, tick
        self._stopping = threading.Event()
        self._reached = True
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Announce from now on."""
        self._thread.start()

    def withdraw(self) -> None:
        """Stop, and say that the process leaves."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=EVERY_S + 2)
        try:
            self._registry.withdraw("inference", self._name)
        except (QueueUnavailable, RedisError) as error:
            log.warning("inference not withdrawn id=%s reason=%s", self._name, error)

    def _run(self) -> None:
        while True:
            try:
                self._registry.announce("inference", self._name, self._facts(), TTL_S)
                self._note(reached=True)
            except (QueueUnavailable, RedisError) as error:
                self._note(reached=False, reason=str(error))
            self._tick()
            if self._stopping.wait(EVERY_S):
                return

    def _note(self, *, reached: bool, reason: str = "") -> None:
        if reached != self._reached:
            log.warning("redis %s id=%s %s", "answered again" if reached else "does not answer", self._name, reason)
        self._reached = reached


_BAD_INPUT = 2
_GRACE_S = 3  # for replies that are under way
_LEAVE_WITHIN_S = 10.0
_WILDCARDS = ("0.0.0.0", "::", "")


def main() -> int:
    """Serve until told to stop."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        jobs, inference = JobSettings(), InferenceSettings()
        device = device_of(inference.device)
    except (ValidationError, DeviceUnavailable) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return _BAD_INPUT
    torch.set_num_threads(options.threads)
    models = Models(jobs.layout, device=device, memory_bytes=inference.memory_bytes)
    config = uvicorn.Config(
        create_app(models),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    listening = config.bind_socket()
    url = options.url or _url(options.host, listening.getsockname()[1])
    host = socket.gethostname()
    facts: dict[str, Any] = {"url": url, "device": device, "host": host, "pid": os.getpid()}
    facts["memory_bytes"] = inference.memory_bytes
    announcer = Announcer(
        Registry(connect(jobs.redis_url, for_api=False)),
        f"{host}-{os.getpid()}",
        lambda: {**facts, "models": models.facts()},
        models.sweep,
    )
    server = _Server(config, announcer)
    for number in (signal.SIGTERM, signal.SIGINT):
        # heard before uvicorn listens, and after it: uvicorn raises what it caught once more when it has ended
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    log.info("inference ready url=%s device=%s threads=%d data=%s", url, device, options.threads, jobs.data)
    asyncio.run(server.serve(sockets=[listening]))
    log.info("inference stopped url=%s", url)
    return 0


def device_of(wanted: str) -> str:
    """Name the device as torch does.

    Raises:
        DeviceUnavailable: This machine does not have it.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    count = torch.cuda.device_count()
    if wanted == "cpu" or (kind == "cuda" and count and (not index or (index.isdigit() and int(index) < count))):
        return wanted
    raise DeviceUnavailable(f"HEADCOUNT_INFERENCE_DEVICE {wanted!r}: this machine has cpu and {count} CUDA devices")


class _Server(uvicorn.Server):
    """Leaves the registry first, so that no new request is sent here while it ends."""

    def __init__(self, config: uvicorn.Config, announcer: Announcer) -> None:
        super().__init__(config)
        self._announcer = announcer

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announcer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        leave = threading.Timer(_LEAVE_WITHIN_S, os._exit, (0,))  # a loading model would hold the process for long
        leave.daemon = True
        leave.start()
        await asyncio.to_thread(self._announcer.withdraw)
        await super().shutdown(sockets)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.inference", description="Serve trained models on this machine until SIGTERM or SIGINT."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one (default)")
    parser.add_argument("--url", help="address that others reach it at, if not http://HOST:PORT")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    half = max(1, cores // 2)  # the other half is for training
    parser.add_argument("--threads", type=int, default=half, help="CPU threads of torch (default: half the cores)")
    return parser.parse_args()


def _url(host: str, port: int) -> str:
    name = socket.gethostname() if host in _WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


if __name__ == "__main__":
    sys.exit(main())
