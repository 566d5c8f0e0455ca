"""Jobs and their parts as clients see them, and the records that the store exchanges with its callers.

The models are part of the API; the dataclasses and named tuples are internal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from model_core.config import ModelConfig
from worker.jobs.kinds import kind_of
from worker.jobs.states import Action, Status

Number = float | Literal["nan", "inf", "-inf"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_View):
    """Progress of a job. Jobs other than trainings have no steps: they count `done` of `of`, in `unit`."""

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
        """Build the progress of a job that has not started.

        Args:
            kind: The job's kind; one without steps has no `step`.

        Returns:
            The progress.
        """
        return cls() if kind_of(kind).has_steps else cls(step=None)


class JobError(_View):
    """Why a job failed."""

    code: str
    detail: str
    step: int | None = None
    hint: str | None = None


class WorkerView(_View):
    """The worker that runs a job."""

    id: str
    host: str
    device: str | None = None
    pid: int | None = None


class QueueView(_View):
    """Position of a queued job."""

    position: int  # from 1
    jobs_ahead: int
    eta_s: tuple[float, float] | None = None


class TimeEstimate(_View):
    """How long a training would take, by those of its shape that ran here."""

    time_s: tuple[float, float] = Field(description="on a worker, with start, validation and checkpoints")
    tokens_per_s: float = Field(description="tokens by that time, the median of the runs")
    from_: str = Field(serialization_alias="from", description="the runs that it is taken from, in words")

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class Transition(_View):
    """One change of status."""

    time: str
    from_: Status | None = Field(serialization_alias="from")
    to: Status
    reason: str

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class Warned(_View):
    """A warning about a job."""

    code: str
    detail: str


class ModelShape(_View):
    """The numbers of a model from which its heads are drawn."""

    n_layer: int
    n_embd: int
    heads: tuple[int, ...]
    head_dim: int | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        """Build the shape of a model.

        Args:
            config: The model.

        Returns:
            The shape, with the head count of every layer.
        """
        return cls(n_layer=config.n_layer, n_embd=config.n_embd, heads=config.heads, head_dim=config.head_dim)


class Job(_View):
    """A job, as the store keeps it; the service adds links."""

    object: Literal["job"] = "job"
    id: str
    kind: str
    run: str | None  # None for a preparation
    dataset: str | None = None  # that it makes or reads
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
    colour: int | None = Field(default=None, description="of its run, 0 to 7, for ever the same")
    model: ModelShape | None = Field(default=None, description="null of kinds without a model of their own")
    revision: int = Field(default=0, exclude=True)  # its ETag; grows with each change but progress


class ResumedFrom(_View):
    """The checkpoint with the full state from which an attempt resumed."""

    file: str
    step: int


class AttemptView(_View):
    """One process of a job, its run, and the checkpoint from which it resumed."""

    attempt: int
    run: str | None
    worker: WorkerView | None = None
    started_at: str
    ended_at: str | None = None
    result: Status | None = None  # status of the job after it; None while it runs
    reason: str | None = None
    step: int | None = 0
    resumed_from: ResumedFrom | None = None


class AwaitedJob(_View):
    """A job that another one waits for."""

    job: str
    kind: str
    name: str | None  # of its run or dataset
    status: Status
    eta_s: tuple[float, float] | None = None  # until its end


class JobDetail(Job):
    """A job with the fields that only the view of a single job has."""

    attempts: tuple[AttemptView, ...] = ()
    depends_on: tuple[str, ...] = ()
    gpus: int | None = None  # None: one, if the worker has any
    config: dict[str, Any] | None = None  # the effective tree
    waiting_on: tuple[AwaitedJob, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, and the number of the attempt, which the store requires with each report.

    Attributes:
        id: Id of the job.
        attempt: Epoch of the lease.
        kind: Kind of the job.
        run: The run that it makes or reads; None for a preparation.
        config: The experiment's configuration.
        dataset: The dataset that it makes or reads.
        devices: Uuids of its GPUs.
        seq_after: Number of the previous run's last event, after a retry from scratch.
        request: The rest of the record: gpus, priority, metadata, warnings, depends_on, created_at, colour.
    """

    id: str
    attempt: int
    kind: str
    run: str | None
    config: dict[str, Any]
    dataset: str | None = None
    devices: tuple[str, ...] = ()
    seq_after: int = 0
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RestoredJob:
    """A job's record, restored from its files on disk."""

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
    ablation: str = ""
    model: str = ""
    colour: int | None = None
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
        result: ``stopped``: on request, or with a checkpoint; ``busy``: another process holds the run.
        reason: Reason of the transition in the job's history.
        error: Error of ``failed``, and of ``crashed`` once the crash budget is spent.
    """

    result: Literal["succeeded", "failed", "stopped", "busy", "crashed"]
    reason: str
    error: JobError | None = None


@dataclass(frozen=True)
class Submission:
    """A submitted job, and whether this call created it."""

    job: Job
    created: bool


@dataclass(frozen=True)
class Capacity:
    """Upper bounds over all known workers.

    Attributes:
        gpus: Most GPUs of one worker.
        memory_bytes: Most memory for one job, of a worker or of its largest GPU; None without a bound.
    """

    gpus: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Preview:
    """What the queue and the workers are to a job that is not submitted.

    Attributes:
        capacity: What the known workers have if none of them could run it, else None.
        queue: The place that it would get; None if it would wait for other jobs first.
        estimate: How long it would take; None if it is no training, or nothing like it ran here.
    """

    capacity: Capacity | None
    queue: QueueView | None
    estimate: TimeEstimate | None


@dataclass(frozen=True)
class Rejection:
    """Why a job was not recorded.

    Attributes:
        why: ``run_exists``: the run's name is taken. ``dataset_exists``: the dataset was made with other parameters, or
            is being made. ``ready``: its result exists already. ``lacking``: the disk lacks an input of the job.
            ``unfit``: no known worker could run it.
        capacity: With ``unfit``.
        maker: With ``dataset_exists``, the job that is making the dataset, if any.
    """

    why: Literal["run_exists", "dataset_exists", "ready", "lacking", "unfit"]
    capacity: Capacity | None = None
    maker: str | None = None


@dataclass(frozen=True)
class ActionResult:
    """A job after a client's action, and whether the action changed its status."""

    job: Job
    is_new: bool


@dataclass(frozen=True)
class QueueState:
    """Number of jobs in each part of the queue, and the first ready jobs, in queue order."""

    queued: int
    ready: int
    waiting: int
    running: int
    jobs: tuple[Job, ...]
