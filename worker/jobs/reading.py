"""From the store's replies to what clients see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from model_core.records.events import Event
from worker.jobs.job import (
    AttemptView,
    Job,
    JobDetail,
    JobError,
    Progress,
    QueueView,
    ResumedFrom,
    Transition,
    Warned,
    WorkerView,
)
from worker.jobs.outlook import read_outlook
from worker.jobs.scripts import VIEW
from worker.jobs.states import HOLDING, TERMINAL, Status, allowed_actions

DETAIL = ("depends_on", "gpus", "claimed_at", "claimed_epoch", "resumed", "step")  # what `detail_of` needs beside


def rfc3339(milliseconds: str | int) -> str:
    """A time of the store as clients see it."""
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_of(reply: Sequence[Any], outlook: str) -> Job | None:
    """Build a job.

    Args:
        reply: What `view` of lib.lua returns: fields, history, place among the ready jobs.
        outlook: As `Outlook.to_json` wrote it; empty when no worker is there.

    Returns:
        The job, or None if there is none.
    """
    fields, history, rank = reply
    record = dict(zip(VIEW, fields, strict=True))
    return Job.model_construct(**_facts(record, history, rank, outlook)) if record["id"] is not None else None


def detail_of(reply: Sequence[Any], outlook: str, more: Mapping[str, Any], attempts: Sequence[str]) -> JobDetail | None:
    """Build a job with its attempts.

    Args:
        reply: As for `job_of`.
        outlook: As for `job_of`.
        more: The fields of `DETAIL`.
        attempts: Those that have ended, JSON each.
    """
    fields, history, rank = reply
    record = dict(zip(VIEW, fields, strict=True))
    if record["id"] is None:
        return None
    every = [_attempt(json.loads(line)) for line in attempts]
    if record["status"] in HOLDING:
        every.append(_present_attempt(record, more))
    return JobDetail.model_construct(
        **_facts(record, history, rank, outlook),
        attempts=tuple(every),
        depends_on=tuple((more["depends_on"] or "").split()),
        gpus=int(more["gpus"]) if more["gpus"] else None,
    )


def _facts(record: Mapping[str, str], history: Sequence[str], rank: int | None, outlook: str) -> dict[str, Any]:
    """Fields of the view. What the scripts wrote is not checked again: a list builds many."""
    status: Status = record["status"]  # type: ignore[assignment]
    return {
        "object": "job",
        "id": record["id"],
        "kind": record["kind"],
        "run": record["run"],
        "status": status,
        "terminal": status in TERMINAL,
        "allowed_actions": allowed_actions(status),
        "attempt": int(record["epoch"]),
        "created_at": rfc3339(record["created_at"]),
        "started_at": rfc3339(record["started_at"]) if record["started_at"] else None,
        "finished_at": rfc3339(record["finished_at"]) if record["finished_at"] else None,
        "progress": _progress(record["progress"], status),
        "error": _part(JobError, record["error"]),
        "worker": _part(WorkerView, record["worker"]),
        "queue": _place(rank, outlook) if rank is not None else None,
        "waiting_for": tuple((record["waiting_for"] or "").split()),
        "history": tuple(_transition(json.loads(line)) for line in history),
        "warnings": tuple(Warned.model_construct(**item) for item in json.loads(record["warnings"])),
        "metadata": json.loads(record["metadata"]),
        "priority": int(record["priority"]),
        "revision": int(record["revision"]),
    }


def _progress(text: str | None, status: Status) -> Progress:
    facts = json.loads(text) if text else {}
    return Progress(**facts if status in HOLDING else {**facts, "eta_s": None})  # only what moves arrives


def _part(model: Any, text: str | None) -> Any:
    return model(**json.loads(text)) if text else None


def _place(rank: int, outlook: str) -> QueueView:
    future = read_outlook(outlook)
    return QueueView.model_construct(
        position=rank + 1, jobs_ahead=rank, eta_s=future.start_of(rank) if future is not None else None
    )


def _transition(entry: dict[str, Any]) -> Transition:
    return Transition.model_construct(
        time=rfc3339(entry["time"]), from_=entry.get("from"), to=entry["to"], reason=entry["reason"]
    )


def _attempt(entry: dict[str, Any]) -> AttemptView:
    return AttemptView(
        attempt=entry["attempt"],
        run=entry["run"],
        worker=_part(WorkerView, entry.get("worker") or None),
        started_at=rfc3339(entry["started_at"]),
        ended_at=rfc3339(entry["ended_at"]),
        result=entry["result"],
        reason=entry["reason"],
        step=entry["step"],
        resumed_from=_part(ResumedFrom, entry.get("resumed_from") or None),
    )


def _present_attempt(record: Mapping[str, str], more: Mapping[str, Any]) -> AttemptView:
    return AttemptView(
        attempt=int(more["claimed_epoch"]),
        run=record["run"],
        worker=_part(WorkerView, record["worker"]),
        started_at=rfc3339(more["claimed_at"]),
        step=int(more["step"] or 0),
        resumed_from=_part(ResumedFrom, more["resumed"]),
    )


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
