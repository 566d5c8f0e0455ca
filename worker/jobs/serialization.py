"""From the store's replies to jobs as clients see them.

A row carries a job's record as one text, which is equal for as long as nothing changes: what is built from it is cached
by it. The position in the queue changes when other jobs do, so it is kept apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import ValidationError

from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_config
from model_core.errors import InvalidConfig
from model_core.storage.events import Event
from worker.jobs.errors import JobNotFound
from worker.jobs.eta import TrainingTime, read_forecast, remaining
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import AwaitedJob, Job, JobDetail, ModelShape, Progress, QueueView, TimeEstimate
from worker.jobs.spec import JOB_ID
from worker.jobs.states import HOLDING, TERMINAL, Status, allowed_actions

J = TypeVar("J", bound=Job)


class JobRow(NamedTuple):
    """A job as the store returns it.

    Attributes:
        record: Fields and history as JSON; equal for as long as nothing changes.
        jobs_ahead: Ready jobs before it; None if it is not in the queue.
    """

    record: str
    jobs_ahead: int | None

    def job(self, forecast: str) -> Job | None:
        """Build the job.

        Args:
            forecast: As `QueueForecast.to_json` wrote it; empty when no worker is there.

        Returns:
            The job, or None if there is none.
        """
        job = job_without_queue_position(self.record)
        if job is None or self.jobs_ahead is None:
            return job
        return job.model_copy(update={"queue": queue_of(self.jobs_ahead, forecast)})


class JobRecord(NamedTuple):
    """A job as the store returns it, with what only a look at one job shows.

    Attributes:
        row: The job.
        forecast: As in `JobPage`.
        more: Further fields and the attempts that ended, as JSON; equal for as long as nothing changes.
        waiting_on: The jobs that it waits for, and when they end.
    """

    row: JobRow
    forecast: str
    more: str
    waiting_on: tuple[AwaitedJob, ...] = ()

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Self:
        """Read a reply.

        Args:
            reply: What the command ``get_detail`` returned.

        Returns:
            The record.
        """
        page = JobPage.of(reply)
        awaited = reply.get("waiting_on") or ()  # Lua writes an empty list as {}
        return cls(page.rows[0], page.forecast, reply["detail"], tuple(_awaited(one, page.forecast) for one in awaited))

    def detail(self) -> JobDetail | None:
        """Build the job with its attempts.

        Returns:
            The job, or None if there is none.
        """
        job = detail_without_queue_position(self.row.record, self.more)
        if job is None:
            return None
        ahead = self.row.jobs_ahead
        queue = None if ahead is None else queue_of(ahead, self.forecast)
        return job.model_copy(update={"queue": queue, "waiting_on": self.waiting_on})


@dataclass(frozen=True)
class JobPage:
    """Jobs as the store returns them.

    Attributes:
        rows: One a job; of a list, newest first.
        forecast: When queued jobs will start, as `QueueForecast.to_json` wrote it; empty when no worker is there.
        has_more: Whether older ones follow.
    """

    rows: tuple[JobRow, ...]
    forecast: str
    has_more: bool = False

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Self:
        """Read a reply.

        Args:
            reply: Of any command that returns jobs.

        Returns:
            The page.
        """
        ahead = (None if known is False else known for known in reply["jobs_ahead"])
        rows = tuple(map(JobRow, reply["records"], ahead))
        return cls(rows, reply["forecast"], bool(reply.get("has_more")))

    def jobs(self) -> list[Job]:
        """Build the jobs.

        Returns:
            Those that exist, in order.
        """
        return [job for job in self.jobs_or_none() if job is not None]

    def jobs_or_none(self) -> list[Job | None]:
        """Build the jobs.

        Returns:
            One a row, None for a job that does not exist.
        """
        return [row.job(self.forecast) for row in self.rows]

    def only(self, job_id: str) -> Job:
        """Build the job of a reply that has one.

        Args:
            job_id: The id that was looked up.

        Returns:
            The job.

        Raises:
            JobNotFound: It does not exist.
        """
        return known_job(self.rows[0].job(self.forecast), job_id)


@lru_cache(maxsize=2048)  # most jobs of a list have not changed since the last look
def job_without_queue_position(record: str) -> Job | None:
    """Build a job from its record.

    Args:
        record: As `JobRow.record`.

    Returns:
        The job without `queue`, or None if there is none.
    """
    fields = json.loads(record)
    return Job.model_validate(_job_fields(fields)) if "id" in fields else None


def detail_without_queue_position(record: str, more: str) -> JobDetail | None:
    """Build a job with its attempts from its record.

    Args:
        record: As `JobRow.record`.
        more: As `JobRecord.more`.

    Returns:
        The job without `queue`, or None if there is none.
    """
    fields = json.loads(record)
    if "id" not in fields:
        return None
    rest = json.loads(more)
    attempts = [_ended_attempt(json.loads(line)) for line in rest["attempts"]]
    if fields["status"] in HOLDING:
        attempts.append(_current_attempt(fields, rest))
    job = _job_fields(fields)
    job["attempts"] = [_shown_attempt(fields["kind"], attempt) for attempt in attempts]
    job["depends_on"] = rest.get("depends_on", "").split()
    job["gpus"] = int(rest["gpus"]) if rest.get("gpus") else None
    job["config"] = _effective_config(fields["kind"], rest["spec"]) if rest.get("spec") else None
    return JobDetail.model_validate(job)


def queue_of(jobs_ahead: int, forecast: str) -> QueueView:
    """Build the queue position of a job.

    Args:
        jobs_ahead: Ready jobs before it.
        forecast: As `QueueForecast.to_json` wrote it; empty when no worker is there.

    Returns:
        Position, and the estimated start if it can be estimated.
    """
    known = read_forecast(forecast)
    eta_s = known.start_of(jobs_ahead) if known is not None else None
    return QueueView(position=jobs_ahead + 1, jobs_ahead=jobs_ahead, eta_s=eta_s)


def time_estimate(samples: Sequence[str], hosts: Set[str], tokens: int) -> TimeEstimate | None:
    """Build the estimate of a training.

    Args:
        samples: What trainings of its shape took, as the store keeps it.
        hosts: Hosts with a worker that is alive.
        tokens: Tokens of the training.

    Returns:
        The estimate; None if nothing like it ran there.
    """
    known = TrainingTime.of(samples, hosts, tokens)
    if known is None:
        return None
    runs = "1 run" if known.runs == 1 else f"{known.runs} runs"
    where = "on this worker's host" if len(hosts) == 1 else "on these workers' hosts"
    return TimeEstimate(time_s=known.time_s, tokens_per_s=known.tokens_per_s, from_=f"{runs} of this shape {where}")


@lru_cache(maxsize=4096)
def rfc3339(milliseconds: str | int) -> str:
    """Format a time of the store as clients see it (RFC 3339).

    Args:
        milliseconds: Since the Unix epoch.

    Returns:
        UTC with milliseconds and ``Z``.
    """
    moment = datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def model_of(kind: str, config: ExperimentConfig) -> str:
    """Describe the model of a job for its record.

    Args:
        kind: Kind of the job.
        config: Its configuration.

    Returns:
        `ModelShape` as JSON; empty for a kind that has no model of its own.
    """
    row = kind_of(kind)
    is_stated = row.makes_run or "model" in config.model_fields_set  # a test leaves it to its checkpoint
    return ModelShape.of(config.model).model_dump_json() if row.has_model and is_stated else ""


def checked_id(job_id: str) -> str:
    """Reject text that cannot be a job's id.

    Args:
        job_id: What a client sent.

    Returns:
        The same id.

    Raises:
        JobNotFound: It has another form.
    """
    if not re.fullmatch(JOB_ID, job_id):
        raise JobNotFound(job_id)
    return job_id


def known_job(job: J | None, job_id: str) -> J:
    """Reject a job that does not exist.

    Args:
        job: What was found.
        job_id: The id that was looked up.

    Returns:
        The same job.

    Raises:
        JobNotFound: `job` is None.
    """
    if job is None:
        raise JobNotFound(job_id)
    return job


def progressed(progress: Progress, event: Event, tokens_per_step: int) -> Progress:
    """Fold one event into the progress of a job.

    Args:
        progress: Before the event.
        event: Any event of the job.
        tokens_per_step: Tokens of one optimizer step, for the estimate of the remaining time.

    Returns:
        Progress after the event; the same if the event tells nothing of it.
    """
    known: dict[str, Any] = {
        key: event[key] for key in ("step", "max_steps", "loss", "val_loss", "tokens_per_s") if key in event
    }
    if progress.step is None:  # the kind counts something else
        known.pop("step", None)
    if event["type"] == "step":
        speed, last = event.get("tokens_per_s"), known.get("max_steps", progress.max_steps)
        if isinstance(speed, int | float) and speed > 0 and last is not None:
            left_s = round((last - event["step"]) * tokens_per_step / speed, 1)
            known["eta_s"] = left_s if left_s > 0 else None  # the last validation and checkpoint follow
    elif event["type"] == "progress":
        known = {key: event.get(key) for key in ("done", "of", "unit", "eta_s")}
    elif event["type"] not in {"validation", "resumed", "start", "prepared", "checkpoint"}:
        return progress
    if event["type"] in {"step", "prepared"}:
        known |= {"done": None, "of": None, "unit": None} if progress.step is not None else {}  # that is over
    return Progress.model_validate({**progress.model_dump(), **known})


def _job_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """A job as plain values; the model validates all of its parts at once, which is faster than one by one."""
    status: Status = record["status"]
    job: dict[str, Any] = {
        "id": record["id"],
        "kind": record["kind"],
        "run": record.get("run") or None,
        "dataset": record.get("dataset") or None,
        "status": status,
        "terminal": status in TERMINAL,
        "allowed_actions": allowed_actions(status),
        "attempt": record["epoch"],
        "created_at": rfc3339(record["created_at"]),
        "history": [_transition(json.loads(line)) for line in record["history"]],
        "warnings": json.loads(record["warnings"]),
        "metadata": json.loads(record["metadata"]),
        "priority": record["priority"],
        "revision": record["revision"],
    }
    job |= {name: rfc3339(record[name]) for name in ("started_at", "finished_at") if name in record}
    job |= {name: json.loads(record[name]) for name in ("error", "worker") if record.get(name)}
    if record.get("waiting_for"):
        job["waiting_for"] = record["waiting_for"].split()
    if "colour" in record:
        job["colour"] = int(record["colour"])
    job["model"] = _model(record)
    if not kind_of(record["kind"]).has_steps:
        job["progress"] = {"step": None}
    if record.get("progress"):
        progress = json.loads(record["progress"])
        job["progress"] = progress if status in HOLDING else {**progress, "eta_s": None}  # nothing runs: no estimate
    return job


def _model(record: Mapping[str, Any]) -> Any:
    """The model as plain values. A record of an earlier version has none, and its specification stands in."""
    if record.get("model"):
        return json.loads(record["model"])
    tree = json.loads(record.get("spec") or "{}")
    if not tree or ("model" not in tree and not kind_of(record["kind"]).makes_run):
        return None
    try:
        return ModelShape.of(ModelConfig.model_validate(tree.get("model", {})))
    except ValidationError:  # of another version
        return None


@lru_cache(maxsize=256)  # a job that runs is looked at each second
def _effective_config(kind: str, spec: str) -> dict[str, Any]:
    """What the job does, with the defaults of the sections that its kind uses."""
    tree: dict[str, Any] = {name: value for name, value in json.loads(spec).items() if name != "job"}
    try:
        config = parse_config(tree).config
    except InvalidConfig:  # of another version
        return tree
    return config.model_dump(mode="json", exclude_unset=kind_of(kind).config != "experiment")


def _awaited(fields: Mapping[str, Any], forecast: str) -> AwaitedJob:
    known, eta_s = read_forecast(forecast), None
    progress = json.loads(fields.get("progress") or "{}")
    if known is not None and "jobs_ahead" in fields:
        eta_s = known.end_of(int(fields["jobs_ahead"]))
    elif fields["status"] in HOLDING and progress.get("eta_s") is not None:
        eta_s = remaining(progress["eta_s"])
    name = (fields.get("run") or fields.get("dataset")) or None
    return AwaitedJob(job=fields["id"], kind=fields["kind"], name=name, status=fields["status"], eta_s=eta_s)


def _transition(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": rfc3339(entry["time"]), "from_": entry.get("from"), "to": entry["to"], "reason": entry["reason"]}


def _shown_attempt(kind: str, attempt: dict[str, Any]) -> dict[str, Any]:
    """Without `step` where the kind counts something else, and without `run` where it has none."""
    shown = attempt if kind_of(kind).has_steps else {**attempt, "step": None}
    return shown if kind_of(kind).has_run else {**shown, "run": None}


def _ended_attempt(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: entry[name] for name in ("attempt", "run", "result", "reason", "step")}
    times = {name: rfc3339(entry[name]) for name in ("started_at", "ended_at")}
    parts = {name: json.loads(entry[name]) for name in ("worker", "resumed_from") if entry.get(name)}
    return {**kept, **times, **parts}


def _current_attempt(record: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    current = {
        "attempt": more["claimed_epoch"],
        "run": record.get("run"),
        "started_at": rfc3339(more["claimed_at"]),
        "step": more.get("step") or 0,
    }
    parts = {"worker": record.get("worker"), "resumed_from": more.get("resumed")}
    return {**current, **{name: json.loads(text) for name, text in parts.items() if text}}
