"""Jobs as the service answers them: the record and its links."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from model_core.budget import Budget
from model_core.config import ExperimentConfig
from model_core.loading import Advice
from service.views.base import View
from worker.jobs.job import Job, JobDetail, Warned
from worker.jobs.spec import JobSpec


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
        """Add the links to a record."""
        return cls(**job.__dict__, links=_job_links(job.id, job.run, job.dataset))


class JobDetailView(JobDetail):
    """A job with its attempts and its links."""

    links: JobLinks

    @classmethod
    def of(cls, job: JobDetail) -> Self:
        """Add the links to a record."""
        return cls(**job.__dict__, links=_job_links(job.id, job.run, job.dataset))


@lru_cache(maxsize=2048)
def _job_links(job_id: str, run: str | None, dataset: str | None) -> JobLinks:
    here = f"/jobs/{job_id}"
    more = {name: f"{here}/{name}" for name in ("events", "logs", "metrics", "cancel")}
    return JobLinks(
        self_=here,
        run=f"/runs/{run}" if run else None,
        dataset=f"/datasets/{dataset}" if dataset else None,
        **more,
    )


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
    warnings: list[Warned]

    @classmethod
    def of(cls, spec: JobSpec, budget: Budget | None, warnings: Sequence[Advice]) -> Self:
        """Put together what was found."""
        return cls(
            kind=spec.kind,
            run=spec.run,
            dataset=spec.dataset,
            config=spec.config,
            budget=budget.to_dict() if budget is not None else None,
            warnings=[Warned(code=item.code, detail=item.detail) for item in warnings],
        )
