"""`headcount up`: Redis, train worker, inference process and API on one machine, under one parent.

The parent locks the data directory, starts the processes and restarts those that die. On Ctrl-C it stops API,
inference and worker (a training saves its state first), then Redis. No process outlives the parent: see `guard.py`.
Heavy modules are imported in the functions that need them, so `headcount --help` stays quick.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import service
from headcount import embedded_redis
from headcount.embedded_redis import CannotStart, lock_data_root
from headcount.processes import ProcessGroup, Program
from model_core.errors import DONE, INTERRUPTED

_START_TIMEOUT_S, _DEATHS_AT_START = 180.0, 3
_WORKER_GRACE_S, _REDIS_GRACE_S = 90.0, 15.0
_API_GRACE_S = 5  # for open event streams
_TICK_S = 0.1
_HTTP_PARSER = "h11"  # httptools hides the host of an absolute target, and takes several Host fields
_LOG_CONFIG = Path(service.__file__).with_name("log_config.json")  # uvicorn's own log has no times
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # listen on every address


@dataclass(frozen=True)
class UpOptions:
    """Options of `headcount up`.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        data: The data root; created if missing.
        slots: Jobs at a time; None: one per GPU, at least one.
        root_path: Path prefix under which a proxy publishes the service.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data: Path = Path("data")
    slots: int | None = None
    root_path: str = ""


def up(options: UpOptions, echo: Callable[[str], None]) -> int:
    """Serve until asked to stop.

    Args:
        options: Address, data root and slots.
        echo: Prints a message for the person at the terminal.

    Returns:
        The exit code: 0, or 130 if it was interrupted while starting.

    Raises:
        CannotStart: The port or the data directory is in use, or a process does not start.
        NoRedis: No Redis server is installed, or the given one does not answer.
    """
    signals = _StopSignals()
    data = options.data.resolve()
    with lock_data_root(data), signals.listening():
        port = _free_port(options.host, options.port)
        slots = options.slots or default_slots()
        service = _Service(data, options.host, port, slots, options.root_path, _safe(echo), signals)
        try:
            ready = service.start()
            while not signals.to_stop:
                service.group.tend()
                time.sleep(_TICK_S)
        finally:
            service.stop()
    return DONE if ready else INTERRUPTED


def default_slots() -> int:
    """Count the jobs that run at a time by default.

    Returns:
        Number of GPUs, at least 1.
    """
    from worker.gpus import find_gpus

    return max(1, len(find_gpus()))


class _StopSignals:
    """The received signals: the first requests a stop, a second Ctrl-C skips the waiting."""

    def __init__(self) -> None:
        self._times: list[int] = []

    @property
    def to_stop(self) -> bool:
        return bool(self._times)

    @property
    def to_hurry(self) -> bool:
        return len(self._times) > 1 and self._times[-1] == signal.SIGINT

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._times.append(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = {n: signal.signal(n, self._record) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class _Service:
    data: Path
    host: str
    port: int
    slots: int
    root_path: str
    echo: Callable[[str], None]
    signals: _StopSignals

    def __post_init__(self) -> None:
        self.group = ProcessGroup(self.echo)
        self.socket: Path | None = None
        shown = "127.0.0.1" if self.host in _WILDCARDS else self.host
        self.url = f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"
        self.is_open = not _is_loopback(self.host)
        self.names = _names_of_machine(self.host) if self.is_open else (self.host,)

    def start(self) -> bool:
        """Start everything; False if a signal arrived before it was ready."""
        began = time.monotonic()
        redis_url = self._start_redis()
        if self.signals.to_stop:
            return False
        self._report_lost_jobs(redis_url)
        for program in self._programs(redis_url):
            self.group.start(program)
        if not self._await("the service", lambda: _missing(self.url)):
            return False
        self.echo(f"Headcount is up after {time.monotonic() - began:.0f} s: {self.url}")
        self.echo(f"open {self.url}{self.root_path}/ in a browser, or {self.url}{self.root_path}/docs for the API")
        self.echo(f"data in {self.data}, logs in {self.data / 'logs'}, {self.slots} slot(s); Ctrl-C stops")
        if self.is_open:
            self.echo(
                f"warning: there is no login, so every machine that reaches {self.host or '*'}:{self.port} can read "
                f"and change everything, by this one's address, {', '.join(self.names)} or a name in HEADCOUNT_HOSTS"
            )
        return True

    def _report_lost_jobs(self, redis_url: str) -> None:
        from headcount.reindex import lost_jobs

        if lost := lost_jobs(self.data, redis_url):
            what = f"{self.data} has records of {lost} job(s), but Redis knows none"
            self.echo(f"{what}: to restore them, run headcount reindex --data {self.data}")

    def stop(self) -> None:
        """Stop everything that was started, Redis last; a training saves first."""
        if self.group.pids:
            self.echo("stopping; a training saves its state first (Ctrl-C again does not wait)")
        self.group.stop(("api", "inference", "worker"), _WORKER_GRACE_S, lambda: self.signals.to_hurry)
        self.group.stop(("redis",), _REDIS_GRACE_S, lambda: False)
        self.group.close()
        if self.socket is not None:
            embedded_redis.remove_private_directory(self.data, self.socket)

    def _start_redis(self) -> str:
        if given := embedded_redis.given_url():
            return given
        self.socket = embedded_redis.socket_of(self.data)
        url = embedded_redis.socket_url(self.socket)
        self.group.start(embedded_redis.program(self.data, self.socket))
        self._await("Redis", lambda: [] if embedded_redis.answers(url) else ["Redis"])
        return url

    def _programs(self, redis_url: str) -> Iterator[Program]:
        environment = {
            **os.environ, "HEADCOUNT_DATA": str(self.data), "HEADCOUNT_REDIS_URL": redis_url,
            "HEADCOUNT_SLOTS": str(self.slots),
            "HEADCOUNT_ROOT_PATH": self.root_path,
            "HEADCOUNT_HOSTS": ",".join((os.environ.get("HEADCOUNT_HOSTS", ""), *self.names)),
        }  # fmt: skip
        python = (sys.executable, "-m")
        for name, argv in {
            "worker": (
                "celery", "-A", "worker.tasks", "worker", "-P", "threads", "-c", str(self.slots),
                "-l", "INFO", "--without-gossip", "--without-mingle",
            ),
            "inference": ("worker.inference", "--host", "127.0.0.1", "--port", "0"),
            "api": (
                "uvicorn", "service.app:app", "--host", self.host, "--port", str(self.port), "--http", _HTTP_PARSER,
                "--timeout-graceful-shutdown", str(_API_GRACE_S), "--log-config", str(_LOG_CONFIG),
            ),
        }.items():  # fmt: skip
            yield Program(name, (*python, *argv), environment, self.data / "logs" / f"{name}.log")

    def _await(self, what: str, missing: Callable[[], list[str]]) -> bool:
        """Wait until nothing is missing; False if a signal arrives first."""
        deadline, printed = time.monotonic() + _START_TIMEOUT_S, ""
        while awaited := missing():
            if self.signals.to_stop:
                return False
            self._raise_if_failing(what)
            if time.monotonic() > deadline:
                raise CannotStart(f"{what} was not ready in time; still missing: {', '.join(awaited)}")
            message = f"waiting for {', '.join(awaited)}"
            if message != printed:
                self.echo(message)
                printed = message
            self.group.tend()
            time.sleep(_TICK_S)
        return True

    def _raise_if_failing(self, what: str) -> None:
        for name, program in self.group.programs.items():
            if self.group.deaths(name) >= _DEATHS_AT_START:
                last = f"last line of {program.log}: {program.last_line()}"
                raise CannotStart(f"{what} did not start: {name} keeps ending; {last}")


def _is_loopback(host: str) -> bool:
    """Check whether only this machine reaches an address."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))
    except (OSError, ValueError):  # an empty host listens everywhere
        return False


def _names_of_machine(host: str) -> tuple[str, ...]:
    """Names by which other machines know this one; the API always answers to the address that they connect to."""
    own = socket.gethostname().lower()
    short = own.partition(".")[0]
    is_name = host not in _WILDCARDS and not _is_address(host)
    return tuple(dict.fromkeys((own, short, f"{short}.local", *((host,) if is_name else ()))))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _missing(url: str) -> list[str]:
    """Parts of the service that are not ready, according to `/readyz`."""
    import httpx

    try:
        reply = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return ["the API"]
    if reply.status_code == httpx.codes.OK:
        return []
    try:
        checks: dict[str, dict[str, object]] = reply.json().get("checks", {})
    except ValueError:
        checks = {}
    return [name.replace("_", " ") for name, check in checks.items() if not check["ok"]] or ["the service"]


def _free_port(host: str, port: int) -> int:
    """Check that the port is free; 0 chooses a free one."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotStart(f"cannot listen on {host}:{port}: {reason}; choose another with --port") from None


def _safe(echo: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap `echo` so that a closed terminal does not prevent the stop."""

    def attempt(message: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            echo(message)

    return attempt
