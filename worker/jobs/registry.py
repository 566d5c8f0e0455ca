"""Who is there: processes announce themselves with a deadline, and are gone when they fall silent."""

from __future__ import annotations

import json
from typing import Any, Literal

import redis

from model_core.records.files import now
from worker.jobs.connection import PREFIX, reaching

Kind = Literal["workers", "inference"]


class Registry:
    """Workers and inference processes that are alive."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def announce(self, kind: Kind, id: str, facts: dict[str, Any], ttl_s: float) -> None:  # noqa: A002 - its name
        """Say that a process is there, for so many seconds.

        Args:
            kind: What it is.
            id: Its name among its kind.
            facts: What others may know of it.
            ttl_s: Without another word it counts as gone after this time.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        body = json.dumps({**facts, "id": id, "time": now()})
        with reaching(), self._redis.pipeline() as pipe:
            pipe.set(_key(kind, id), body, px=max(1, int(ttl_s * 1000)))
            pipe.sadd(_key(kind), id)
            pipe.execute()

    def withdraw(self, kind: Kind, id: str) -> None:  # noqa: A002 - its name
        """Say that a process leaves.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with reaching(), self._redis.pipeline() as pipe:
            pipe.delete(_key(kind, id))
            pipe.srem(_key(kind), id)
            pipe.execute()

    def alive(self, kind: Kind) -> list[dict[str, Any]]:
        """Facts, `id` and `time` of every process that is there, by id.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        with reaching():
            ids = sorted(map(str, self._redis.smembers(_key(kind))))
            bodies = self._redis.mget([_key(kind, id) for id in ids]) if ids else []  # noqa: A001 - as above
            gone = [id for id, body in zip(ids, bodies, strict=True) if body is None]  # noqa: A001 - as above
            if gone:
                self._redis.srem(_key(kind), *gone)
        return [json.loads(body) for body in bodies if body is not None]


def _key(kind: Kind, id: str | None = None) -> str:  # noqa: A002 - as above
    return f"{PREFIX}{kind}" if id is None else f"{PREFIX}{kind}:{id}"
