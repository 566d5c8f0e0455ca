"""Views of jobs, and their JSON from the rows of the job store.

Few jobs change between two requests, so the JSON of a job is cached by its record. Only the queue position changes
without the record, so it is inserted each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from model_core.budget import Budget
from model_core.config import ExperimentConfig
from model_core.config_loader import ConfigWarning
from service.schemas import View, link
from worker.jobs.errors import JobNotFound
from worker.jobs.schemas import Job, JobDetail, QueueView, TimeEstimate, Warned
from worker.jobs.serialization import (
    JobPage,
    JobRecord,
    detail_without_queue_position,
    job_without_queue_position,
    queue_of,
)
from worker.jobs.spec import JobSpec

_CACHE_SIZE = 2048


class JobLinks(View):
    """Where the rest of a job is."""

    self_: str = Field(serialization_alias="self")
    events: str
    logs: str
    metrics: str
    run: str | None
    dataset: str | None
    cancel: str


class JobView(Job):
    """A job with its links."""

    links: JobLinks

    @classmethod
    def of(cls, job: Job) -> Self:
        """Add links to a job.

        Args:
            job: The record.

        Returns:
            The view.
        """
        return cls(**job.__dict__, links=_job_links(link(""), job.id, job.run, job.dataset))


class JobDetailView(JobDetail):
    """A job with its attempts and its links."""

    links: JobLinks

    @classmethod
    def of(cls, job: JobDetail) -> Self:
        """Add links to a job.

        Args:
            job: The record.

        Returns:
            The view.
        """
        return cls(**job.__dict__, links=_job_links(link(""), job.id, job.run, job.dataset))


class EventView(BaseModel):
    """One line of events.jsonl; the fields that depend on `type` follow these."""

    model_config = ConfigDict(extra="allow", frozen=True)

    seq: int
    time: str
    attempt: int
    type: str


class Validation(View):
    """What a submission would be: nothing was made."""

    object: Literal["validation"] = "validation"
    kind: str
    run: str | None
    dataset: str | None
    config: ExperimentConfig
    budget: dict[str, Any] | None = Field(
        description="parameters, FLOPs, memory, disk and steps, layer by layer and in sum; null of prepare and export"
    )
    estimate: TimeEstimate | None = Field(
        default=None, description="how long it would take; null where nothing of that shape and length ran"
    )
    queue: QueueView | None = Field(
        default=None, description="the place that it would get; null if it would wait for other jobs, or be refused"
    )
    warnings: list[Warned]

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        budget: Budget | None,
        warnings: Sequence[ConfigWarning],
        *,
        estimate: TimeEstimate | None = None,
        queue: QueueView | None = None,
    ) -> Self:
        """Summarize a submission that was checked.

        Args:
            spec: The job as it would run.
            budget: What it would cost; None for jobs without a model.
            warnings: Warnings about the configuration.
            estimate: How long it would take, if that is known.
            queue: The place that it would get, if it would be ready.

        Returns:
            The view.
        """
        return cls(
            kind=spec.kind,
            estimate=estimate,
            queue=queue,
            run=spec.run,
            dataset=spec.dataset,
            config=spec.config,
            budget=budget.to_dict() if budget is not None else None,
            warnings=[Warned(code=item.code, detail=item.detail) for item in warnings],
        )


class Rendered(NamedTuple):
    """JSON of a job without its queue position.

    Attributes:
        id: Id of the job.
        revision: Revision of its record.
        json: The JSON object without its closing brace.
    """

    id: str
    revision: int
    json: bytes

    def with_queue(self, jobs_ahead: int | None, forecast: str) -> bytes:
        """Complete the JSON.

        Args:
            jobs_ahead: Ready jobs before it; None if it is not in the queue.
            forecast: Forecast of the queue, as the store keeps it.

        Returns:
            The JSON object.
        """
        return b'%b,"queue":%b}' % (self.json, b"null" if jobs_ahead is None else _queue(jobs_ahead, forecast))


class Listing(NamedTuple):
    """A page of jobs.

    Attributes:
        body: A `Listed[JobView]` as JSON.
        last_id: Id of the last job; None for an empty page.
    """

    body: bytes
    last_id: str | None


def render_page(found: JobPage) -> Listing:
    """Render a page of jobs.

    Args:
        found: Rows of the page, from the store.

    Returns:
        The page as JSON.
    """
    prefix = link("")
    jobs = [(known, row.jobs_ahead) for row in found.rows if (known := _job(row.record, prefix)) is not None]
    first_id, last_id = (jobs[0][0].id, jobs[-1][0].id) if jobs else (None, None)
    data = b",".join(known.with_queue(ahead, found.forecast) for known, ahead in jobs)
    ends = json.dumps({"first_id": first_id, "last_id": last_id, "has_more": found.has_more}).encode()
    return Listing(b'{"object":"list","data":[%b],%b' % (data, ends[1:]), last_id)


def render_detail(job_id: str, found: JobRecord) -> tuple[bytes, int]:
    """Render a job with its attempts.

    Args:
        job_id: Id that was requested.
        found: The record, from the store.

    Returns:
        A `JobDetailView` as JSON, and the revision of the job.

    Raises:
        JobNotFound: The store has no such job.
    """
    known = _detail(found.row.record, found.more, link(""))
    if known is None:
        raise JobNotFound(job_id)
    waiting_on = json.dumps([one.model_dump(mode="json") for one in found.waiting_on]).encode()
    body = known.with_queue(found.row.jobs_ahead, found.forecast)
    return b'%b,"waiting_on":%b}' % (body[:-1], waiting_on), known.revision


@lru_cache(_CACHE_SIZE)
def _queue(jobs_ahead: int, forecast: str) -> bytes:
    return queue_of(jobs_ahead, forecast).model_dump_json().encode()


@lru_cache(_CACHE_SIZE)
def _job(record: str, _prefix: str) -> Rendered | None:  # the links in the JSON have the prefix
    job = job_without_queue_position(record)
    return None if job is None else _rendered(JobView.of(job))


@lru_cache(_CACHE_SIZE)
def _detail(record: str, more: str, _prefix: str) -> Rendered | None:
    job = detail_without_queue_position(record, more)
    return None if job is None else _rendered(JobDetailView.of(job))


def _rendered(view: JobView | JobDetailView) -> Rendered:
    return Rendered(view.id, view.revision, view.model_dump_json(exclude={"queue", "waiting_on"}).encode()[:-1])


@lru_cache(_CACHE_SIZE)
def _job_links(prefix: str, job_id: str, run: str | None, dataset: str | None) -> JobLinks:
    here = f"{prefix}/jobs/{job_id}"
    more = {name: f"{here}/{name}" for name in ("events", "logs", "metrics", "cancel")}
    return JobLinks(
        self_=here,
        run=f"{prefix}/runs/{run}" if run else None,
        dataset=f"{prefix}/datasets/{dataset}" if dataset else None,
        **more,
    )
