"""What can be asked of job records without changing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis

from model_core.records.events import Event
from worker.jobs import questions
from worker.jobs.connection import PREFIX, reaching
from worker.jobs.exchange import Page, QueueState
from worker.jobs.job import Job, JobDetail
from worker.jobs.reading import checked_id, jobs_of, known_job
from worker.jobs.scripts import Scripts
from worker.jobs.states import Status


class JobReader:
    """Job records, as clients see them. Every method raises `QueueUnavailable` when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis, self._scripts = client, Scripts(client)

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            JobNotFound: There is none of that id.
        """
        jobs = self._scripts.ask(questions.jobs([checked_id(job_id)]))
        return known_job(jobs[0] if jobs else None, job_id)

    def detail(self, job_id: str) -> JobDetail:
        """Read a job with its attempts.

        Raises:
            JobNotFound: There is none of that id.
        """
        return self._scripts.ask(questions.detail(job_id))

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Status | None = None,
        kind: str | None = None,
        run: str | None = None,
        dataset: str | None = None,
    ) -> Page:
        """List jobs, newest first.

        Args:
            after: The last job of the page before.
            limit: How many at most.
            status: Only these.
            kind: Only these.
            run: Only these.
            dataset: Only those that make or read it.

        Raises:
            JobNotFound: `after` is no job.
        """
        asked = questions.page(after=after, limit=limit, status=status, kind=kind, run=run, dataset=dataset)
        found = self._scripts.ask(asked)
        return Page(tuple(jobs_of(found.rows, found.outlook)), found.has_more)

    def makers(self, datasets: Sequence[str]) -> list[Job | None]:
        """Read the last job that makes or made each dataset, where one is known."""
        return self._scripts.ask(questions.makers(datasets))

    def user(self, dataset: str) -> str | None:
        """A job that makes or reads a dataset and is not over, if there is one."""
        return self._scripts.run("user", dataset) or None

    def queue(self, limit: int = 20) -> QueueState:
        """Count what is queued and running, and list the first ready jobs in the order of their turn."""
        counted = ("jobs:status:queued", "ready", "jobs:status:running", "jobs:status:stopping")
        with reaching(), self._redis.pipeline(transaction=False) as pipe:
            for name in counted:
                pipe.zcard(f"{PREFIX}{name}")
            pipe.zrange(f"{PREFIX}ready", 0, limit - 1)
            queued, ready, running, stopping, ids = pipe.execute()
        jobs = self._scripts.ask(questions.jobs(ids))
        in_line = tuple(job for job in jobs if job.queue is not None)
        return QueueState(queued, ready, max(0, queued - ready), running + stopping, in_line)

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


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"
