"""What jobs left on disk, found and read with care: a file may be half of what it was.

A job is known by its directory, or by a run whose `attempt` file names it. One that never started left nothing.
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

from model_core.config import Name
from model_core.errors import ModelCoreError
from model_core.records.events import read_events
from model_core.records.files import Layout, read_json, write_json
from model_core.records.run import Run, runs_in
from worker.jobs.job import JobError, Warned
from worker.jobs.order import read_order
from worker.jobs.section import JOB_ID, Kind
from worker.jobs.states import Status

_M = TypeVar("_M", bound=BaseModel)
_FILE, _DELETED = "job.json", "deleted"


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
class Trace:
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


def traces(layout: Layout) -> tuple[list[Trace], list[BadFile]]:
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
        write_json(directory / _FILE, {"schema_version": 1, "id": job_id, "status": _DELETED})


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


def _trace(layout: Layout, job_id: str, owned: list[tuple[int, Run]]) -> Trace | None:
    """What there is of a job; None if it was deleted, or left too little to say what it was."""
    directory = _directory(layout, job_id)
    with reading(directory / _FILE):
        tree = read_order(directory)
        if tree is not None and tree.get("status") == _DELETED:
            return None
        order = Order.model_validate(tree) if tree is not None else None
        if order is not None and order.id != job_id:
            raise ValueError(f"it belongs to {order.id}")
    attempt, run = max(owned, key=lambda pair: pair[0], default=(0, None))
    if order is not None:
        run = next((run for _, run in owned if run.name == order.run), None)
        return Trace(job_id, order.created_at, directory, run, attempt, order)
    trace = Trace(job_id, 0, directory, run, attempt, None)
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
