"""From the store's replies to what clients see."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from model_core.storage.events import Event
from worker.jobs.errors import JobNotFound
from worker.jobs.eta import read_forecast
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import DETAIL, VIEW, Job, JobDetail, JobRecord, JobRow, Progress, QueueView
from worker.jobs.spec import JOB_ID
from worker.jobs.states import HOLDING, TERMINAL, Status, allowed_actions

J = TypeVar("J", bound=Job)


@lru_cache(maxsize=4096)
def rfc3339(milliseconds: str | int) -> str:
    """A time of the store as clients see it."""
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_of(row: JobRow, forecast: str) -> Job | None:
    """Build a job.

    Args:
        row: What `view` of lib.lua returns.
        forecast: As `QueueForecast.to_json` wrote it; empty when no worker is there.

    Returns:
        The job, or None if there is none.
    """
    record, place = row
    job = without_queue_position(record)
    return job if job is None or place is None else job.model_copy(update={"queue": queue_of(place, forecast)})


def jobs_of(rows: Sequence[JobRow], forecast: str) -> list[Job]:
    """Build the jobs of a list; those that are gone are left out.

    Args:
        rows: What `views` of lib.lua returns.
        forecast: As for `job_of`.
    """
    every = (job_of(row, forecast) for row in rows)
    return [job for job in every if job is not None]


def detail_of(look: JobRecord) -> JobDetail | None:
    """Build a job with its attempts."""
    (record, place), forecast, more = look
    job = detail_without_queue_position(record, more)
    return job if job is None or place is None else job.model_copy(update={"queue": queue_of(place, forecast)})


def detail_without_queue_position(known: str, more: str) -> JobDetail | None:
    """Build a job with its attempts from its record; where it stands in line is not in it."""
    record, history = _record(known)
    if not record["id"]:
        return None
    values, attempts = json.loads(more)
    rest = dict(zip(DETAIL, values, strict=True))
    every = [_attempt(json.loads(line)) for line in attempts]  # an empty list arrives as an empty object
    if record["status"] in HOLDING:
        every.append(_present_attempt(record, rest))
    facts = _facts(record, history)
    facts["attempts"] = [_of_kind(record["kind"], attempt) for attempt in every]
    facts["depends_on"] = (rest["depends_on"] or "").split()
    facts["gpus"] = int(rest["gpus"]) if rest["gpus"] else None
    return JobDetail.model_validate(facts)


@lru_cache(maxsize=2048)  # who looks at a list again sees mostly what has not changed
def without_queue_position(known: str) -> Job | None:
    """Build a job from its record; where it stands in line is not in it."""
    record, history = _record(known)
    return Job.model_validate(_facts(record, history)) if record["id"] else None


def _record(known: str) -> tuple[dict[str, Any], Sequence[str]]:
    """Fields and history; what Lua does not have is False."""
    fields, history = json.loads(known)
    return dict(zip(VIEW, fields, strict=True)), history


def queue_of(place: int, forecast: str) -> QueueView:
    """Build what a client sees of a place in line."""
    future = read_forecast(forecast)
    return QueueView(position=place + 1, jobs_ahead=place, eta_s=future.start_of(place) if future is not None else None)


def _facts(record: Mapping[str, Any], history: Sequence[str]) -> dict[str, Any]:
    """A job as plain values; the model builds all of its parts in one go, which is quicker than one by one."""
    status: Status = record["status"]
    facts: dict[str, Any] = {
        "id": record["id"],
        "kind": record["kind"],
        "run": record["run"] or None,
        "dataset": record["dataset"] or None,
        "status": status,
        "terminal": status in TERMINAL,
        "allowed_actions": allowed_actions(status),
        "attempt": record["epoch"],
        "created_at": rfc3339(record["created_at"]),
        "history": _history(f"[{','.join(history)}]"),
        "warnings": json.loads(record["warnings"]),
        "metadata": json.loads(record["metadata"]),
        "priority": record["priority"],
        "revision": record["revision"],
    }
    facts |= {name: rfc3339(record[name]) for name in ("started_at", "finished_at") if record[name]}
    facts |= {name: json.loads(record[name]) for name in ("error", "worker") if record[name]}
    if record["waiting_for"]:
        facts["waiting_for"] = record["waiting_for"].split()
    if not kind_of(record["kind"]).has_steps:
        facts["progress"] = {"step": None}
    if record["progress"]:
        progress = json.loads(record["progress"])
        facts["progress"] = progress if status in HOLDING else {**progress, "eta_s": None}  # only what moves arrives
    return facts


def _history(text: str) -> list[dict[str, Any]]:
    return [
        {"time": rfc3339(entry["time"]), "from_": entry.get("from"), "to": entry["to"], "reason": entry["reason"]}
        for entry in json.loads(text)
    ]


def _of_kind(kind: str, attempt: dict[str, Any]) -> dict[str, Any]:
    """What counts the crashes of a preparation or an export is no step, and a preparation has no run."""
    shown = attempt if kind_of(kind).has_steps else {**attempt, "step": None}
    return shown if kind_of(kind).has_run else {**shown, "run": None}


def _attempt(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {name: entry[name] for name in ("attempt", "run", "result", "reason", "step")}
    times = {name: rfc3339(entry[name]) for name in ("started_at", "ended_at")}
    parts = {name: json.loads(entry[name]) for name in ("worker", "resumed_from") if entry.get(name)}
    return {**kept, **times, **parts}


def _present_attempt(record: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
    present = {
        "attempt": more["claimed_epoch"],
        "run": record["run"],
        "started_at": rfc3339(more["claimed_at"]),
        "step": more["step"] or 0,
    }
    parts = {"worker": record["worker"], "resumed_from": more["resumed"]}
    return {**present, **{name: json.loads(text) for name, text in parts.items() if text}}


def checked_id(job_id: str) -> str:
    """Refuse what cannot be a job's id.

    Raises:
        JobNotFound: Naming it.
    """
    if not re.fullmatch(JOB_ID, job_id):
        raise JobNotFound(job_id)
    return job_id


def known_job(job: J | None, job_id: str) -> J:
    """Refuse an id that no job has.

    Raises:
        JobNotFound: Naming it.
    """
    if job is None:
        raise JobNotFound(job_id)
    return job


def progressed(progress: Progress, event: Event, tokens_per_step: int) -> Progress:
    """Fold one event into the progress of a job."""
    known: dict[str, Any] = {
        key: event[key] for key in ("step", "max_steps", "loss", "val_loss", "tokens_per_s") if key in event
    }
    if progress.step is None:  # what a preparation counts are documents, and an export files
        known.pop("step", None)
    if event["type"] == "step":
        speed, last = event.get("tokens_per_s"), known.get("max_steps", progress.max_steps)
        if isinstance(speed, int | float) and speed > 0 and last is not None:
            known["eta_s"] = round(max(0, last - event["step"]) * tokens_per_step / speed, 1)
    elif event["type"] == "progress":
        known = {key: event.get(key) for key in ("done", "of", "unit", "eta_s")}
    elif event["type"] not in {"validation", "resumed", "start", "prepared", "checkpoint"}:
        return progress
    if event["type"] in {"step", "prepared"}:
        known |= {"done": None, "of": None, "unit": None} if progress.step is not None else {}  # that is over
    return Progress.model_validate({**progress.model_dump(), **known})
