"""The way to Redis: short waits, no silent retries.

A command that timed out may have been executed, so nothing here repeats one; every script of the store is safe to
repeat by whoever wants to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

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
def reaching() -> Iterator[None]:
    """Turn what a missing Redis raises into `QueueUnavailable`."""
    try:
        yield
    except _AWAY as error:
        raise QueueUnavailable(type(error).__name__) from error
    except redis.ResponseError as error:
        if not str(error).startswith(_UNABLE):
            raise
        raise QueueUnavailable(str(error).split(maxsplit=1)[0]) from error
