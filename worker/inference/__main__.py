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
from urllib.parse import urlsplit

from model_core.attention.quota import AttentionQuota
from model_core.hardware.process_environment import (
    limit_arenas,
    requested_threads,
    return_freed_memory,
    spin_variables,
    usable_cores,
)

if __name__ == "__main__":  # before torch is loaded, whose OpenMP reads them once
    os.environ.update(spin_variables(os.environ))
    limit_arenas(os.environ)

import torch
import uvicorn
from pydantic import ValidationError
from redis import RedisError

from model_core.errors import BAD_INPUT, DeviceUnavailable
from worker.inference.app import create_app
from worker.inference.model_cache import ModelCache
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry, connect
from worker.jobs.settings import InferenceSettings, JobSettings

log = logging.getLogger(__name__)

_HEARTBEAT_S, _TTL_S = 2.0, 10.0
_GRACE_S = 3  # for open replies
_EXIT_WITHIN_S = 10.0
_SWITCH_INTERVAL_S = (
    0.0005  # the event loop and the engines share the interpreter: 5 ms is longer than a small model's step
)
_BACKLOG = 2048  # connections that wait while the process starts
_WILDCARDS = ("0.0.0.0", "::", "")


def main() -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        Exit status: 0, or 2 for a wrong setting or an address that cannot be listened on.
    """
    options = _options()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        jobs, inference = JobSettings(), InferenceSettings()
        device = device_of(inference.device)
    except (ValidationError, DeviceUnavailable) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return BAD_INPUT
    threads = options.threads or inference.threads or requested_threads(os.environ) or _half_the_cores()
    torch.set_num_threads(threads)
    models = ModelCache(jobs.layout, device=device, settings=inference)
    known_as = urlsplit(options.url or "").hostname or options.host
    config = uvicorn.Config(
        create_app(
            models,
            names=(known_as.lower(), socket.gethostname().lower()),
            quota=AttentionQuota(jobs.layout, jobs.attention_bytes),
        ),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        listening = listen(options.host, options.port)
    except OSError as error:
        sys.stderr.write(f"{options.host} port {options.port}: {error.strerror}\n")
        return BAD_INPUT
    url = options.url or _url(options.host, listening.getsockname()[1])
    host = socket.gethostname()
    info: dict[str, Any] = {"url": url, "device": device, "host": host, "pid": os.getpid()}
    info |= {"memory_bytes": inference.memory_bytes, "weights": inference.weights, "threads": threads}
    heartbeat = Heartbeat(
        Registry(connect(jobs.redis_url, for_api=False)),
        f"{host}-{os.getpid()}",
        lambda: {**info, "totals": models.totals(), "models": models.info()},
        Housekeeping(models),
    )
    server = _Server(config, heartbeat)
    for number in (signal.SIGTERM, signal.SIGINT):
        # handles signals before uvicorn listens and after it: uvicorn raises the caught signal again when it has ended
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    log.info("inference ready url=%s device=%s threads=%d data=%s", url, device, threads, jobs.data)
    server.run(sockets=[listening])
    log.info("inference stopped url=%s", url)
    return 0


def device_of(wanted: str) -> str:
    """Resolve the setting HEADCOUNT_INFERENCE_DEVICE to a device of torch.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The device, as torch writes it; ``auto`` is CUDA where there is some.

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


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket whose connections send small replies at once.

    asyncio sets TCP_NODELAY only where the protocol of a socket is stated. Without it, Nagle's algorithm and delayed
    acknowledgements hold the end of each reply back for 40 ms.

    Args:
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Returns:
        The bound socket, for uvicorn.

    Raises:
        OSError: The address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class Housekeeping:
    """Frees unused models, and once after the last of many requests the memory that they took.

    Args:
        models: The models of this process.
    """

    def __init__(self, models: ModelCache) -> None:
        self._models, self._submitted = models, 0

    def __call__(self) -> None:
        """Do it, now and then."""
        self._models.sweep()
        totals = self._models.totals()
        if not totals["open_requests"] and totals["submitted"] != self._submitted:
            self._submitted = totals["submitted"]
            return_freed_memory()


class Heartbeat:
    """A thread that keeps one inference process registered.

    Args:
        registry: Registry in Redis.
        name: Unique name of the process among inference processes.
        info: Returns the fields to publish; called for every heartbeat.
        tick: Housekeeping, called after every heartbeat.
    """

    def __init__(
        self, registry: Registry, name: str, info: Callable[[], dict[str, Any]], tick: Callable[[], None]
    ) -> None:
        self._registry, self._name, self._info, self._tick = registry, name, info, tick
        self._stopping = threading.Event()
        self._is_redis_up = True
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register, and renew the registration from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and remove the registration."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_HEARTBEAT_S + 2)
        try:
            self._registry.deregister("inference", self._name)
        except (QueueUnavailable, RedisError) as error:
            log.warning("inference not deregistered id=%s reason=%s", self._name, error)

    def _run(self) -> None:
        while True:
            try:
                self._registry.register("inference", self._name, self._info(), _TTL_S)
                self._log_change(is_redis_up=True)
            except (QueueUnavailable, RedisError) as error:
                self._log_change(is_redis_up=False, reason=str(error))
            self._tick()
            if self._stopping.wait(_HEARTBEAT_S):
                return

    def _log_change(self, *, is_redis_up: bool, reason: str = "") -> None:
        if is_redis_up != self._is_redis_up:
            log.warning("redis %s id=%s %s", "answered again" if is_redis_up else "does not answer", self._name, reason)
        self._is_redis_up = is_redis_up


class _Server(uvicorn.Server):
    """Removes the registration before it shuts down, so that no new request is sent here."""

    def __init__(self, config: uvicorn.Config, heartbeat: Heartbeat) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._heartbeat.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        exit_timer = threading.Timer(_EXIT_WITHIN_S, os._exit, (0,))  # loading a model may take longer
        exit_timer.daemon = True
        exit_timer.start()
        await asyncio.to_thread(self._heartbeat.stop)
        await super().shutdown(sockets)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.inference", description="Serve trained models on this machine until SIGTERM or SIGINT."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one (default)")
    parser.add_argument("--url", help="address that others reach it at, if not http://HOST:PORT")
    default = "HEADCOUNT_INFERENCE_THREADS, else OMP_NUM_THREADS, else half the cores"
    parser.add_argument("--threads", type=int, help=f"CPU threads of torch (default: {default})")
    return parser.parse_args()


def _half_the_cores() -> int:
    return max(1, usable_cores() // 2)  # the other half is for training


def _url(host: str, port: int) -> str:
    name = socket.gethostname() if host in _WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


if __name__ == "__main__":
    sys.exit(main())
