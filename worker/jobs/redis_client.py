"""Redis connections with short timeouts, the registry of live processes, and retries while Redis is away.

A command that timed out may have been executed, so the connection retries none. Every script of the store is
idempotent, so callers may repeat it. A registered process disappears when its heartbeat stops.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from model_core.storage.files import now
from worker.jobs.errors import QueueDiskFull, QueueUnavailable

T = TypeVar("T")
ProcessKind = Literal["workers", "inference"]

PREFIX = "headcount:"  # of every key
_RETRY_S = 0.5
_SHUTDOWN_S = 5.0  # then a worker that shuts down gives up: the lease expires, and another worker continues the job
_UNABLE = ("MISCONF", "OOM", "BUSY", "LOADING", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")  # error prefixes
_NO_SPACE = os.strerror(errno.ENOSPC)  # as Redis quotes it
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError)


def connect(url: str, *, for_api: bool) -> redis.Redis:
    """Open a lazy client that answers in text.

    Args:
        url: ``redis://host:port/db`` or ``unix:///path/redis.sock?db=0``.
        for_api: Bound the pool to 32 connections, and wait at most a second for one or for a reply. Workers wait
            longer and share an unbounded pool.

    Returns:
        The client, not connected yet.
    """
    options: dict[str, Any] = {"decode_responses": True, "retry": Retry(NoBackoff(), 0)}
    if for_api:
        options |= {"socket_timeout": 1.0, "socket_connect_timeout": 0.5}
        bounded = redis.BlockingConnectionPool.from_url(url, max_connections=32, timeout=1, **options)
        return redis.Redis(connection_pool=bounded)
    options |= {"socket_timeout": 2.0, "socket_connect_timeout": 1.0}
    return redis.Redis(connection_pool=redis.ConnectionPool.from_url(url, **options))


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Translate the errors of an unreachable or unable Redis.

    Raises:
        QueueUnavailable: Redis does not answer, or cannot execute commands now.
        QueueDiskFull: It executes no commands that change something, because its disk is full.
    """
    try:
        yield
    except _AWAY as error:
        raise QueueUnavailable(type(error).__name__) from error
    except redis.ResponseError as error:
        if not str(error).startswith(_UNABLE):
            raise
        if _NO_SPACE in str(error):
            raise QueueDiskFull from error
        raise QueueUnavailable(str(error).split(maxsplit=1)[0]) from error


class Registry:
    """Workers and inference processes that are alive.

    Args:
        client: Redis connection.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def register(self, kind: ProcessKind, id: str, info: dict[str, Any], ttl_s: float) -> None:  # noqa: A002 - its name
        """Register a process, or renew its registration: a heartbeat.

        Args:
            kind: Kind of process.
            id: Unique name within the kind.
            info: JSON fields published about the process.
            ttl_s: Seconds until the registration expires without another heartbeat.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        body = json.dumps({**info, "id": id, "time": now()})
        with redis_errors(), self._redis.pipeline() as pipe:
            pipe.set(_key(kind, id), body, px=max(1, int(ttl_s * 1000)))
            pipe.sadd(_key(kind), id)
            pipe.execute()

    def deregister(self, kind: ProcessKind, id: str) -> None:  # noqa: A002 - its name
        """Remove the registration of a process.

        Args:
            kind: Kind of process.
            id: Unique name within the kind.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors(), self._redis.pipeline() as pipe:
            pipe.delete(_key(kind, id))
            pipe.srem(_key(kind), id)
            pipe.execute()

    def alive(self, kind: ProcessKind) -> list[dict[str, Any]]:
        """List the registered processes.

        Args:
            kind: Kind of process.

        Returns:
            The info of each, with its `id` and the `time` of its last heartbeat; by id.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with redis_errors():
            ids = sorted(map(str, self._redis.smembers(_key(kind))))
            bodies = self._redis.mget([_key(kind, id) for id in ids]) if ids else []  # noqa: A001 - as above
            gone = [id for id, body in zip(ids, bodies, strict=True) if body is None]  # noqa: A001 - as above
            if gone:
                self._redis.srem(_key(kind), *gone)
        return [json.loads(body) for body in bodies if body is not None]


def retry_until_available(call: Callable[[], T], stopping: Callable[[], bool]) -> T:
    """Repeat a call until Redis answers.

    Args:
        call: An idempotent call.
        stopping: True once the worker shuts down.

    Returns:
        The result of the call.

    Raises:
        QueueUnavailable: The worker has been shutting down for five seconds, and Redis does not answer.
    """
    stopping_since: float | None = None
    while True:
        try:
            return call()
        except QueueUnavailable:
            if stopping():
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > _SHUTDOWN_S:
                    raise
        time.sleep(_RETRY_S)


def _key(kind: ProcessKind, id: str | None = None) -> str:  # noqa: A002 - as above
    return f"{PREFIX}{kind}" if id is None else f"{PREFIX}{kind}:{id}"
