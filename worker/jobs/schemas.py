"""Jobs and their parts as clients see them, and what passes between the store and its callers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from worker.jobs.kinds import kind_of
from worker.jobs.states import Action, Status

Number = float | Literal["nan", "inf", "-inf"]

# Fields of a record, in the order in which `view` of lib.lua returns them.
VIEW = (
    "id", "kind", "run", "status", "epoch", "created_at", "started_at", "finished_at", "progress", "error", "worker",
    "warnings", "metadata", "priority", "waiting_for", "revision", "dataset",
)  # fmt: skip
# Fields that only a look at one job needs beside.
DETAIL = ("depends_on", "gpus", "claimed_at", "claimed_epoch", "resumed", "step")


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
        return cls() if kind_of(kind).has_steps else cls(step=None)


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


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, and the number of its attempt, which every report must carry.

    Attributes:
        id: The job's.
        attempt: The lease's epoch.
        kind: What it does.
        run: The run it makes or reads; None of a preparation.
        config: The experiment.
        dataset: The one that it makes or reads.
        devices: GPUs it got, by uuid.
        seq_after: Number of the last event of the run before, when this one was begun from scratch.
        order: What its client asked for beside the configuration: gpus, priority, metadata, warnings,
            depends_on, created_at.
    """

    id: str
    attempt: int
    kind: str
    run: str | None
    config: dict[str, Any]
    dataset: str | None = None
    devices: tuple[str, ...] = ()
    seq_after: int = 0
    order: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RestoredJob:
    """A record put together from what a job left on disk."""

    id: str
    kind: str
    run: str | None
    status: Status
    config: dict[str, Any]
    attempt: int
    created_at_ms: int
    dataset: str | None = None
    recipe: str = ""
    export: str = ""
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    gpus: int | None = None
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Warned, ...] = ()
    depends_on: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Progress)
    error: JobError | None = None
    last_seq: int = 0


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        result: ``stopped`` is with a checkpoint, or because we asked; ``busy``: another process holds the run.
        error: For ``failed``, and for ``crashed`` once the crash budget is spent.
        reason: For the job's history.
    """

    result: Literal["succeeded", "failed", "stopped", "busy", "crashed"]
    reason: str
    error: JobError | None = None


@dataclass(frozen=True)
class Submission:
    """A submitted job, and whether this call made it."""

    job: Job
    created: bool


@dataclass(frozen=True)
class Capacity:
    """What the known workers have.

    Attributes:
        gpus: Of the worker that has most.
        memory_bytes: The largest for one job: a worker's, or its largest GPU's; None without a bound.
    """

    gpus: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Rejection:
    """Why a job was not recorded.

    Attributes:
        why: The run's name is taken; a dataset of that name was, or is being, made in another way; it, or the export,
            is there already;
            the disk lacks what the job needs; no known worker could run it.
        capacity: For the last of these.
        maker: The job that makes the dataset in another way, if one is at it.
    """

    why: Literal["run_exists", "dataset_exists", "ready", "lacking", "unfit"]
    capacity: Capacity | None = None
    maker: str | None = None


@dataclass(frozen=True)
class ActionResult:
    """A job that a client wished something of, and whether that changed its status."""

    job: Job
    is_new: bool


class JobRow(NamedTuple):
    """A job as the store keeps it, and where it stands in line; `reading` makes a job of it.

    Attributes:
        record: Fields and history as JSON; equal for as long as nothing changes.
        place: In the line of ready jobs, from 0.
    """

    record: str
    place: int | None


class JobRecord(NamedTuple):
    """A job as the store keeps it, with what only a look at one job shows.

    Attributes:
        row: The job.
        forecast: As in `JobPage`.
        more: The fields of `scripts.DETAIL` and the attempts that have ended, as JSON; equal while nothing changes.
    """

    row: JobRow
    forecast: str
    more: str


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first.

    Attributes:
        rows: One a job.
        forecast: When those in line will start, as `QueueForecast.to_json` wrote it; empty when no worker is there.
        has_more: Whether older ones follow.
    """

    rows: tuple[JobRow, ...]
    forecast: str
    has_more: bool


@dataclass(frozen=True)
class Page:
    """Jobs, newest first."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True)
class QueueState:
    """How many jobs are in which part of the queue, and the first that are ready, in the order of their turn."""

    queued: int
    ready: int
    waiting: int
    running: int
    jobs: tuple[Job, ...]
