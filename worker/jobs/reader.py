"""What can be asked of job records without changing them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import redis

from model_core.records.events import Event
from worker.jobs.connection import PREFIX, reaching
from worker.jobs.errors import JobNotFound
from worker.jobs.job import Job, JobDetail, Page, QueueState
from worker.jobs.reading import DETAIL, detail_of, job_of
from worker.jobs.scripts import VIEW, Scripts
from worker.jobs.spec import JOB_ID
from worker.jobs.states import Status

_J = TypeVar("_J", bound=Job)


class JobReader:
    """Job records, as clients see them. Every method raises `QueueUnavailable` when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis, self._scripts = client, Scripts(client)

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            JobNotFound: There is none of that id.
        """
        jobs = self._read([checked_id(job_id)])
        return known_job(jobs[0] if jobs else None, job_id)

    def detail(self, job_id: str) -> JobDetail:
        """Read a job with its attempts.

        Raises:
            JobNotFound: There is none of that id.
        """
        key = _key(checked_id(job_id))
        with reaching(), self._redis.pipeline(transaction=False) as pipe:
            self._ask_view(pipe, job_id)
            pipe.get(f"{PREFIX}outlook")
            pipe.hmget(key, DETAIL)
            pipe.lrange(f"{key}:attempts", 0, -1)
            *seen, outlook, more, attempts = pipe.execute()
        return known_job(detail_of(seen, outlook or "", dict(zip(DETAIL, more, strict=True)), attempts), job_id)

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Status | None = None,
        kind: str | None = None,
        run: str | None = None,
    ) -> Page:
        """List jobs, newest first.

        Args:
            after: The last job of the page before.
            limit: How many at most.
            status: Only these.
            kind: Only these.
            run: Only these.

        Raises:
            JobNotFound: `after` is no job.
        """
        cursor = checked_id(after) if after else ""
        verdict, *rest = self._scripts.run("page", cursor, limit + 1, status or "", kind or "", run or "")
        if verdict == "missing":
            raise JobNotFound(cursor)
        seen, outlook, has_more = rest
        return Page(tuple(known_job(job_of(reply, outlook), "") for reply in seen), has_more=bool(has_more))

    def queue(self, limit: int = 20) -> QueueState:
        """Count what is queued and running, and list the first ready jobs in the order of their turn."""
        counted = ("jobs:status:queued", "ready", "jobs:status:running", "jobs:status:stopping")
        with reaching(), self._redis.pipeline(transaction=False) as pipe:
            for name in counted:
                pipe.zcard(f"{PREFIX}{name}")
            pipe.zrange(f"{PREFIX}ready", 0, limit - 1)
            queued, ready, running, stopping, ids = pipe.execute()
        jobs = tuple(job for job in self._read(ids) if job.queue is not None)
        return QueueState(queued, ready, max(0, queued - ready), running + stopping, jobs)

    def _read(self, ids: Sequence[str]) -> list[Job]:
        with reaching(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                self._ask_view(pipe, job_id)
            pipe.get(f"{PREFIX}outlook")
            *replies, outlook = pipe.execute()
        found = (job_of(replies[at : at + 3], outlook or "") for at in range(0, len(replies), 3))
        return [job for job in found if job is not None]

    @staticmethod
    def _ask_view(pipe: Any, job_id: str) -> None:
        """As `view` of lib.lua, without a script's costs."""
        pipe.hmget(_key(job_id), VIEW)
        pipe.lrange(f"{_key(job_id)}:history", 0, -1)
        pipe.zrank(f"{PREFIX}ready", job_id)

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Events of the job's tail with a `seq` above `after`."""
        with reaching():
            start = f"({after}-0" if after else "-"
            entries: Any = self._redis.xrange(f"{_key(job_id)}:events", start, "+", count=limit)
        return [json.loads(fields["event"]) for _, fields in entries]

    def time_s(self) -> float:
        """The server's clock."""
        with reaching():
            seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6


def checked_id(job_id: str) -> str:
    """Refuse what cannot be a job's id.

    Raises:
        JobNotFound: Naming it.
    """
    if not re.fullmatch(JOB_ID, job_id):
        raise JobNotFound(job_id)
    return job_id


def known_job(job: _J | None, job_id: str) -> _J:
    """Refuse an id that no job has.

    Raises:
        JobNotFound: Naming it.
    """
    if job is None:
        raise JobNotFound(job_id)
    return job


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"
