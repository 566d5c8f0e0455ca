"""Redis connections with short timeouts, the registry of live processes, and retries while Redis is away.

A command that timed out may have been executed, so the connection repeats none; every script of the store may be
repeated by its caller. A registered process disappears when its heartbeat stops.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from model_core.storage.files import now
from worker.jobs.errors import QueueUnavailable

PREFIX = "headcount:"  # of every key
_UNABLE = ("MISCONF", "OOM", "BUSY", "LOADING", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")  # its disk is full, ...
_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, redis.OutOfMemoryError)


def connect(url: str, *, for_api: bool) -> redis.Redis:
    """Open a lazy client that answers in text.

    Args:
        url: ``redis://host:port/db`` or ``unix:///path/redis.sock?db=0``.
        for_api: A bounded pool whose callers wait up to a second for a connection; else a worker's, which is patient.
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
    """Turn what a missing Redis raises into `QueueUnavailable`."""
    try:
        yield
    except _AWAY as error:
        raise QueueUnavailable(type(error).__name__) from error
    except redis.ResponseError as error:
        if not str(error).startswith(_UNABLE):
            raise
        raise QueueUnavailable(str(error).split(maxsplit=1)[0]) from error


Kind = Literal["workers", "inference"]


class Registry:
    """Workers and inference processes that are alive."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def register(self, kind: Kind, id: str, info: dict[str, Any], ttl_s: float) -> None:  # noqa: A002 - its name
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

    def deregister(self, kind: Kind, id: str) -> None:  # noqa: A002 - its name
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

    def alive(self, kind: Kind) -> list[dict[str, Any]]:
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


def _key(kind: Kind, id: str | None = None) -> str:  # noqa: A002 - as above
    return f"{PREFIX}{kind}" if id is None else f"{PREFIX}{kind}:{id}"


T = TypeVar("T")

_PAUSE_S = 0.5
_LEAVING_S = 5.0  # a worker that leaves waits no longer: the lease runs out, and another worker goes on


def retry_until_available(call: Callable[[], T], stopping: Callable[[], bool]) -> T:
    """Repeat a call until Redis answers.

    Args:
        call: Safe to repeat.
        stopping: Whether the worker leaves.

    Raises:
        QueueUnavailable: The worker leaves, and Redis stayed away.
    """
    leaving_since: float | None = None
    while True:
        try:
            return call()
        except QueueUnavailable:
            if stopping():
                leaving_since = leaving_since or time.monotonic()
                if time.monotonic() - leaving_since > _LEAVING_S:
                    raise
        time.sleep(_PAUSE_S)
