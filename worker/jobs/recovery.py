"""Job records rebuilt from disk after Redis lost them.

A job is found by its directory, or by a run whose `attempt` file names it. job.json has the request and the last known
status; next comes the outcome file of its process. An interrupted job becomes paused, so that a person decides. Any
file may be truncated. A job that never started left nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from model_core.config import ExperimentConfig, Name
from model_core.config_loader import Tree, parse_config, read_tree
from model_core.errors import ModelCoreError
from model_core.storage.events import Event, read_events
from model_core.storage.files import Layout, now, read_json, write_json
from model_core.storage.run import Run, runs_in
from worker.jobs.kinds import KINDS, Kind, kind_without_name, maker_of
from worker.jobs.schemas import Claim, JobError, Progress, RestoredJob, Warned
from worker.jobs.serialization import progressed
from worker.jobs.spec import JOB_ID, JobSection, JobSpec
from worker.jobs.states import TERMINAL, Status

_FILE = "job.json"


def write_job_file(directory: Path, claim: Claim, status: str, error: JobError | None = None) -> None:
    """Write it down.

    Args:
        directory: The job's.
        claim: The job.
        status: Where it is now.
        error: Why it failed, if it did.
    """
    job = {"schema_version": 1, "id": claim.id, "kind": claim.kind, "run": claim.run, "dataset": claim.dataset}
    end = {"status": status, "error": error.model_dump() if error else None, "time": now()}
    write_json(directory / _FILE, {**job, "attempt": claim.attempt, **claim.order, **end, "config": claim.config})


def read_order(directory: Path) -> dict[str, Any] | None:
    """Read it; None if the job never ran."""
    path = directory / _FILE
    return read_json(path) if path.is_file() else None


_M = TypeVar("_M", bound=BaseModel)
_TRACES_FILE, _DELETED = "job.json", "deleted"


class BadFile(ModelCoreError):
    """A file that does not hold what it should."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Order(_File):
    """job.json: what was asked, and what had become of it when it was written."""

    id: str
    kind: Kind
    run: Name | None = None
    dataset: Name | None = None
    attempt: int = 0
    status: Status = "running"
    gpus: int | None = None
    priority: int = 0
    metadata: dict[str, str] = {}
    depends_on: tuple[str, ...] = ()
    warnings: tuple[Warned, ...] = ()
    error: JobError | None = None
    created_at: int  # milliseconds
    time: datetime | None = None  # when it was written
    config: dict[str, Any]


class Outcome(_File):
    """outcome.json: how an attempt ended, by its own word."""

    attempt: int
    outcome: Literal["succeeded", "failed", "stopped"]
    error: JobError | None = None
    time: datetime


class _Owner(_File):
    """The `attempt` file of a run."""

    attempt: int = 0
    job_id: Annotated[str, StringConstraints(pattern=JOB_ID)] | None = None


@dataclass(frozen=True)
class JobOnDisk:
    """A job that left something on disk.

    Attributes:
        id: The job's.
        created_at_ms: When it was submitted, as far as that can be known.
        directory: Its own.
        run: The run that it made; None of a test, and of a training that has made none.
        attempt: The last of its attempts that a run knows of.
        order: Its job.json, if it has one.
    """

    id: str
    created_at_ms: int
    directory: Path
    run: Run | None
    attempt: int
    order: Order | None

    @property
    def home(self) -> Path:
        """Where its events and its outcome lie."""
        return self.run.path if self.run is not None else self.directory

    @property
    def config(self) -> Path:
        """The configuration as its author wrote it, else as the run resolved it."""
        written = self.directory / "config.yaml"
        return written if written.is_file() else self.home / "config.yaml"


def traces(layout: Layout) -> tuple[list[JobOnDisk], list[BadFile]]:
    """Find jobs, the oldest first, and the files that could not be read."""
    owned, bad = _owned_runs(layout)
    unclear = {error.path.parent.name for error in bad}  # runs whose owner nobody knows: their jobs are left alone
    found = []
    for job_id in sorted({*owned, *_job_directories(layout)}):
        try:
            trace = _trace(layout, job_id, owned.get(job_id, []))
        except BadFile as error:
            bad.append(error)
        else:
            if trace is not None and not (trace.order and trace.order.run in unclear):
                found.append(trace)
    return sorted(found, key=lambda trace: (trace.created_at_ms, trace.id)), bad


def write_off(layout: Layout, job_id: str) -> None:
    """Write down that a job was deleted, so that it is not found again, whatever of it stays."""
    directory = _directory(layout, job_id)
    if directory.is_dir():  # else it never ran
        write_json(directory / _TRACES_FILE, {"schema_version": 1, "id": job_id, "status": _DELETED})


def read_as(model: type[_M], path: Path) -> _M:
    """Read a JSON file that must look like a model.

    Raises:
        BadFile: It does not, or cannot be read.
    """
    with reading(path):
        return model.model_validate(read_json(path))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file that something is wrong with.

    Raises:
        BadFile: Whatever its content led to.
    """
    try:
        yield
    except BadFile:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelCoreError) as error:
        raise BadFile(path, _reason(error)) from error


def milliseconds(time: datetime | str) -> int:
    """A time on disk as the store keeps it."""
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    return round(moment.timestamp() * 1000)


def _owned_runs(layout: Layout) -> tuple[dict[str, list[tuple[int, Run]]], list[BadFile]]:
    """Runs by the job that owns them, each with the number of its last attempt."""
    owned: dict[str, list[tuple[int, Run]]] = {}
    bad = []
    for run in runs_in(layout):
        path = run.path / "attempt"
        try:
            owner = read_as(_Owner, path) if path.exists() else _Owner()
        except BadFile as error:
            bad.append(error)
        else:
            if owner.job_id is not None:
                owned.setdefault(owner.job_id, []).append((owner.attempt, run))
    return owned, bad


def _job_directories(layout: Layout) -> list[str]:
    if layout.jobs is None or not layout.jobs.is_dir():
        return []
    return [path.name for path in layout.jobs.iterdir() if re.match(JOB_ID, path.name) and path.is_dir()]


def _trace(layout: Layout, job_id: str, owned: list[tuple[int, Run]]) -> JobOnDisk | None:
    """What there is of a job; None if it was deleted, or left too little to say what it was."""
    directory = _directory(layout, job_id)
    with reading(directory / _TRACES_FILE):
        tree = read_order(directory)
        if tree is not None and tree.get("status") == _DELETED:
            return None
        order = Order.model_validate(tree) if tree is not None else None
        if order is not None and order.id != job_id:
            raise ValueError(f"it belongs to {order.id}")
    attempt, run = max(owned, key=lambda pair: pair[0], default=(0, None))
    if order is not None:
        run = next((run for _, run in owned if run.name == order.run), None)
        return JobOnDisk(job_id, order.created_at, directory, run, attempt, order)
    trace = JobOnDisk(job_id, 0, directory, run, attempt, None)
    if not trace.config.is_file():
        return None
    with reading(trace.home / "events.jsonl"):
        first = next(read_events(trace.home / "events.jsonl"), None)
        created_at_ms = milliseconds(first["time"]) if first else round(trace.config.stat().st_mtime * 1000)
    return replace(trace, created_at_ms=created_at_ms)


def _directory(layout: Layout, job_id: str) -> Path:
    assert layout.jobs is not None
    return layout.jobs / job_id


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def salvage(layout: Layout, trace: JobOnDisk) -> RestoredJob:
    """Put a job's record together.

    Args:
        layout: Where runs lie.
        trace: What there is of the job.

    Raises:
        RunBusy: A living process holds its run.
        BadFile: Something cannot be read.
    """
    if trace.run is None:
        return _restored(layout, trace)
    with trace.run.lock():  # nobody writes meanwhile
        return _restored(layout, trace)


def _restored(layout: Layout, trace: JobOnDisk) -> RestoredJob:
    order = trace.order or _order_of(trace)
    config = _config(order.config, trace.config)
    told = _Told.read(trace.home / "events.jsonl", config.training.total_batch_size, order.kind)
    outcomes = _outcomes(trace)
    attempt = max([trace.attempt, order.attempt, told.attempt, *(outcome.attempt for outcome in outcomes)])
    outcome = next((outcome for outcome in outcomes if outcome.attempt == attempt), None)
    spec = JobSpec(order.kind, order.run, config, JobSection())
    status = _status(layout, trace, order, attempt, outcome)
    error = outcome.error if outcome is not None else None
    times = [time for time in (order.time, outcome.time if outcome is not None else None) if time is not None]
    return RestoredJob(
        id=trace.id,
        kind=order.kind,
        run=order.run,
        dataset=order.dataset,
        recipe=spec.recipe,
        export=spec.export,
        status=status,
        config=order.config,
        attempt=attempt,
        created_at_ms=trace.created_at_ms,
        started_at_ms=told.started_at_ms,
        finished_at_ms=milliseconds(max(times)) if status in TERMINAL and times else None,
        gpus=order.gpus,
        priority=order.priority,
        metadata=order.metadata,
        warnings=order.warnings,
        depends_on=order.depends_on,
        progress=told.progress,
        error=(error or order.error) if status == "failed" else None,
        last_seq=told.last_seq,
    )


def _status(layout: Layout, trace: JobOnDisk, order: Order, attempt: int, outcome: Outcome | None) -> Status:
    if order.attempt == attempt and order.status in TERMINAL:
        return order.status
    if outcome is not None and outcome.outcome != "stopped":
        return outcome.outcome
    if KINDS[order.kind].makes_run and trace.run is None and order.run and layout.run(order.run).exists():
        return "cancelled"  # its name is another's, which happens only when a job is over
    return "paused"


def _outcomes(trace: JobOnDisk) -> list[Outcome]:
    """A training that was refused before it had a run says so in its own directory."""
    files = [directory / "outcome.json" for directory in dict.fromkeys((trace.home, trace.directory))]
    return [read_as(Outcome, file) for file in files if file.exists()]


@dataclass(frozen=True)
class _Told:
    """What a job's events say."""

    progress: Progress
    attempt: int = 0
    last_seq: int = 0
    started_at_ms: int | None = None

    @classmethod
    def read(cls, path: Path, tokens_per_step: int, kind: str) -> _Told:
        told = cls(Progress.beginning(kind))
        with reading(path):
            for event in read_events(path):
                told = told._after(event, tokens_per_step)
        return told

    def _after(self, event: Event, tokens_per_step: int) -> _Told:
        last_seq = max(self.last_seq, event["seq"])
        try:
            attempt = max(self.attempt, int(event["attempt"]))
            started_at_ms = self.started_at_ms or milliseconds(event["time"])
            return _Told(progressed(self.progress, event, tokens_per_step), attempt, last_seq, started_at_ms)
        except (KeyError, TypeError, ValueError):  # nobody could read it while the job ran, either
            return replace(self, last_seq=last_seq)


def _order_of(trace: JobOnDisk) -> Order:
    """What job.json would say, from the configuration alone."""
    with reading(trace.config):
        tree = read_tree(trace.config)
    config = _config(tree, trace.config)
    kind = maker_of("run") if trace.run is not None else kind_without_name(trains=config.execution.train)
    run = trace.run.name if trace.run is not None else config.experiment_name
    gpus = JobSpec(kind, run, config, JobSection()).gpus
    return Order(id=trace.id, kind=kind, run=run, gpus=gpus, created_at=trace.created_at_ms, config=tree)


def _config(tree: Tree, path: Path) -> ExperimentConfig:
    with reading(path):
        return parse_config(tree).config
