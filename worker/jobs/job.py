"""A job as clients see it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from worker.jobs.kinds import WITHOUT_STEPS
from worker.jobs.states import Action, Status

Number = float | Literal["nan", "inf", "-inf"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_View):
    """How far a job is. A preparation and an export have no steps: `done` of so many, whatever the unit."""

    step: int | None = 0
    max_steps: int | None = None
    loss: Number | None = None
    val_loss: Number | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    done: int | None = None
    of: int | None = None
    unit: str | None = None

    @classmethod
    def beginning(cls, kind: str) -> Self:
        """Of a job of some kind that has told nothing yet."""
        return cls(step=None) if kind in WITHOUT_STEPS else cls()


class JobError(_View):
    """Why a job failed."""

    code: str
    detail: str
    step: int | None = None
    hint: str | None = None


class WorkerView(_View):
    """Who runs a job."""

    id: str
    host: str
    device: str | None = None
    pid: int | None = None


class QueueView(_View):
    """Where a queued job stands."""

    position: int  # from 1
    jobs_ahead: int
    eta_s: tuple[float, float] | None = None


class Transition(_View):
    """One change of status."""

    time: str
    from_: Status | None = Field(serialization_alias="from")
    to: Status
    reason: str

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class Warned(_View):
    """Something to know about a job."""

    code: str
    detail: str


class Job(_View):
    """A job's record; the service adds links."""

    object: Literal["job"] = "job"
    id: str
    kind: str
    run: str | None  # None: a preparation makes none
    dataset: str | None = None  # the one that it makes or reads
    status: Status
    terminal: bool
    allowed_actions: tuple[Action, ...]
    attempt: int
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    progress: Progress = Progress()
    error: JobError | None = None
    worker: WorkerView | None = None
    queue: QueueView | None = None
    waiting_for: tuple[str, ...] = ()
    history: tuple[Transition, ...] = ()
    warnings: tuple[Warned, ...] = ()
    metadata: dict[str, str] = {}
    priority: int = 0
    revision: int = Field(default=0, exclude=True)  # grows with what a client may decide by; progress does not count


class ResumedFrom(_View):
    """The full state that an attempt went on from."""

    file: str
    step: int


class AttemptView(_View):
    """One process of a job, and the way to its parents: the run and the state it went on from."""

    attempt: int
    run: str | None
    worker: WorkerView | None = None
    started_at: str
    ended_at: str | None = None
    result: Status | None = None  # the status it led to; None while it runs
    reason: str | None = None
    step: int | None = 0
    resumed_from: ResumedFrom | None = None


class JobDetail(Job):
    """A job with what only a look at one job shows."""

    attempts: tuple[AttemptView, ...] = ()
    depends_on: tuple[str, ...] = ()
    gpus: int | None = None  # None: one if the worker has any
