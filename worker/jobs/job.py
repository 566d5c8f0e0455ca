"""A job as clients see it, and what passes between the store and a worker that runs one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_core.records.events import Event
from worker.jobs.states import TERMINAL, Action, Status, allowed_actions

Number = float | Literal["nan", "inf", "-inf"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_View):
    """How far a job is."""

    step: int = 0
    max_steps: int | None = None
    loss: Number | None = None
    val_loss: Number | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


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
    run: str
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


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, and the number of its attempt, which every report must carry."""

    id: str
    attempt: int
    kind: str
    run: str
    gpus: int | None
    config: dict[str, Any]


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
class Wish:
    """A job that a client wished something of, and whether that changed its status."""

    job: Job
    is_new: bool


@dataclass(frozen=True)
class Page:
    """Jobs, newest first."""

    jobs: tuple[Job, ...]
    has_more: bool


def rfc3339(milliseconds: str | int) -> str:
    """A time of the store as clients see it."""
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_of(record: Mapping[str, str], history: Sequence[str], rank: int | None) -> Job:
    """Build the view of a record.

    Args:
        record: The hash as Redis holds it.
        history: Transitions, JSON each.
        rank: Ready jobs before it; None when it is not ready.
    """
    status: Status = record["status"]  # type: ignore[assignment]  # written by the scripts alone
    times: dict[str, Any] = {
        key: rfc3339(record[key]) for key in ("created_at", "started_at", "finished_at") if record.get(key)
    }
    texts = {key: json.loads(record[key]) for key in ("progress", "error", "worker") if record.get(key)}
    return Job(
        id=record["id"],
        kind=record["kind"],
        run=record["run"],
        status=status,
        terminal=status in TERMINAL,
        allowed_actions=allowed_actions(status),
        attempt=int(record["epoch"]),
        queue=None if rank is None else QueueView(position=rank + 1, jobs_ahead=rank),
        history=tuple(_transition(json.loads(line)) for line in history),
        warnings=tuple(Warned(**item) for item in json.loads(record["warnings"])),
        metadata=json.loads(record["metadata"]),
        priority=int(record["priority"]),
        **times,
        **texts,
    )


def _transition(entry: dict[str, Any]) -> Transition:
    return Transition(time=rfc3339(entry["time"]), from_=entry.get("from"), to=entry["to"], reason=entry["reason"])


def progressed(progress: Progress, event: Event, tokens_per_step: int) -> Progress:
    """Fold one event into the progress of a job."""
    known: dict[str, Any] = {
        key: event[key] for key in ("step", "max_steps", "loss", "val_loss", "tokens_per_s") if key in event
    }
    if event["type"] == "step":
        speed, last = event.get("tokens_per_s"), known.get("max_steps", progress.max_steps)
        if isinstance(speed, int | float) and speed > 0 and last is not None:
            known["eta_s"] = round(max(0, last - event["step"]) * tokens_per_step / speed, 1)
    elif event["type"] not in {"validation", "resumed", "start", "prepared", "checkpoint"}:
        return progress
    return Progress.model_validate({**progress.model_dump(), **known})
