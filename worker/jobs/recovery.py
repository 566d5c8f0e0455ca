"""Recovery of job records from the files on disk after Redis has lost them.

A job is found by its directory, or by a run whose `attempt` file names it. job.json contains the request and a status;
if that is not final, the outcome file of the job's process decides. An interrupted job becomes paused, so that a person
decides whether to continue it. Any file may be truncated or of another version; an unreadable file affects only its own
job. A job that never started has no files.
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
from worker.jobs.commands import ScriptCall
from worker.jobs.kinds import KINDS, Kind, kind_without_name, maker_of
from worker.jobs.schemas import Claim, JobError, Progress, RestoredJob, Warned
from worker.jobs.serialization import model_of, progressed
from worker.jobs.spec import JOB_ID, JobSection, JobSpec
from worker.jobs.states import TERMINAL, Status

_JOB_FILE, _DELETED = "job.json", "deleted"
_M = TypeVar("_M", bound=BaseModel)


class BadFile(ModelCoreError):
    """A file is damaged or has an unknown format.

    Attributes:
        path: Path of the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class JobFile(_File):
    """Content of job.json: the request, and the status of the job when the file was written."""

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
    colour: int | None = None
    created_at: int  # milliseconds
    time: datetime | None = None  # when it was written
    config: dict[str, Any]


@dataclass(frozen=True)
class JobOnDisk:
    """A job that left files on disk.

    Attributes:
        id: Id of the job.
        created_at_ms: Time of submission; without a job.json, that of the first event or of the configuration.
        directory: Directory of the job.
        run: Run that the job owns; None if it owns none.
        attempt: Number of the last attempt in the `attempt` files of its runs; 0 if there is none.
        file: Content of its job.json; None if that does not exist.
    """

    id: str
    created_at_ms: int
    directory: Path
    run: Run | None
    attempt: int
    file: JobFile | None

    @property
    def records(self) -> Path:
        """Directory of the events and the outcome."""
        if self.run is None or (self.file is not None and not KINDS[self.file.kind].writes_in_run):
            return self.directory
        return self.run.path

    @property
    def config(self) -> Path:
        """Path of the submitted configuration, or else of the resolved one."""
        submitted = self.directory / "config.yaml"
        return submitted if submitted.is_file() else self.records / "config.yaml"


def write_job_file(directory: Path, claim: Claim, status: str, error: JobError | None = None) -> None:
    """Write job.json.

    Args:
        directory: Directory of the job.
        claim: The job.
        status: Current status of the job.
        error: Error of a failed job.
    """
    record = {
        "schema_version": 1,
        "id": claim.id,
        "kind": claim.kind,
        "run": claim.run,
        "dataset": claim.dataset,
        "attempt": claim.attempt,
        **claim.request,
        "status": status,
        "error": error.model_dump() if error else None,
        "time": now(),
        "config": claim.config,
    }
    write_json(directory / _JOB_FILE, record)


def write_deleted(layout: Layout, job_id: str) -> None:
    """Replace job.json by one with status ``deleted``, so that the job is not restored.

    Args:
        layout: Directories of the data root.
        job_id: Id of the job.
    """
    directory = _directory(layout, job_id)
    if directory.is_dir():  # otherwise the job never ran
        write_json(directory / _JOB_FILE, {"schema_version": 1, "id": job_id, "status": _DELETED})


def jobs_on_disk(layout: Layout) -> tuple[list[JobOnDisk], list[BadFile]]:
    """Find the jobs that have files on disk.

    Args:
        layout: Directories of the data root.

    Returns:
        The jobs, oldest first, and the files that could not be read.
    """
    owned, bad = _owned_runs(layout)
    ownerless = {error.path.parent.name for error in bad}  # jobs of runs whose owner is unknown are not restored
    found = []
    for job_id in sorted({*owned, *_job_directories(layout)}):
        try:
            job = _job_on_disk(layout, job_id, owned.get(job_id, []))
        except BadFile as error:
            bad.append(error)
        else:
            if job is not None and not (job.file and job.file.run in ownerless):
                found.append(job)
    return sorted(found, key=lambda job: (job.created_at_ms, job.id)), bad


def rebuild(layout: Layout, job: JobOnDisk) -> RestoredJob:
    """Rebuild the record of a job.

    Args:
        layout: Directories of the data root.
        job: The job.

    Returns:
        The record.

    Raises:
        RunBusy: A running process holds its run.
        BadFile: A file cannot be read.
    """
    with job.run.lock() if job.run is not None else contextlib.nullcontext():  # no process writes in the meantime
        return _build_record(layout, job)


def restore(record: RestoredJob) -> ScriptCall[bool]:
    """Recreate a record that was lost.

    Args:
        record: What the job's files say of it.

    Returns:
        The call; its result is False if the job is known or another job owns its name.
    """
    gpus = "" if record.gpus is None else str(record.gpus)
    counted = record.progress.step or record.progress.done or 0
    optional = {
        "started_at": record.started_at_ms,
        "finished_at": record.finished_at_ms,
        "error": record.error.model_dump_json() if record.error else None,
        "colour": record.colour,
    }
    fields = {
        "kind": record.kind, "run": record.run or "", "epoch": record.attempt, "priority": record.priority,
        "spec": json.dumps(record.config), "warnings": json.dumps([item.model_dump() for item in record.warnings]),
        "metadata": json.dumps(dict(record.metadata)), "gpus": gpus, "class": gpus or "any", "desired": "run",
        "step": counted, "crash_step": counted, "mirrored": record.last_seq, "key": "",
        "progress": record.progress.model_dump_json(), "depends_on": " ".join(record.depends_on),
        "waiting_for": "", "dataset": record.dataset or "", "recipe": record.recipe, "export": record.export,
        "ablation": record.ablation, "model": record.model,
        **{name: value for name, value in optional.items() if value is not None},
    }  # fmt: skip
    arguments = {"id": record.id, "status": record.status, "created_at": record.created_at_ms, "fields": fields}
    return ScriptCall("transitions.restore", arguments, lambda reply: bool(reply["restored"]))


# --- finding jobs ----------------------------------------------------------------------------------------------------


class _Owner(_File):
    """The `attempt` file of a run."""

    attempt: int = 0
    job_id: Annotated[str, StringConstraints(pattern=JOB_ID)] | None = None


def _owned_runs(layout: Layout) -> tuple[dict[str, list[tuple[int, Run]]], list[BadFile]]:
    """Runs by the id of the job that owns them, each with the number of its last attempt."""
    owned: dict[str, list[tuple[int, Run]]] = {}
    bad = []
    for run in runs_in(layout):
        path = run.path / "attempt"
        try:
            owner = _read_as(_Owner, path) if path.exists() else _Owner()
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


def _directory(layout: Layout, job_id: str) -> Path:
    assert layout.jobs is not None
    return layout.jobs / job_id


def _job_on_disk(layout: Layout, job_id: str, owned: list[tuple[int, Run]]) -> JobOnDisk | None:
    """The files of a job; None if it was deleted, or if no file contains its configuration."""
    directory = _directory(layout, job_id)
    path = directory / _JOB_FILE
    with _reading(path):
        tree = read_json(path) if path.is_file() else None
        if tree is not None and tree.get("status") == _DELETED:
            return None
        file = JobFile.model_validate(tree) if tree is not None else None
        if file is not None and file.id != job_id:
            raise ValueError(f"it belongs to {file.id}")
    attempt, run = max(owned, key=lambda pair: pair[0], default=(0, None))
    if file is not None:
        run = next((run for _, run in owned if run.name == file.run), None)
        return JobOnDisk(job_id, file.created_at, directory, run, attempt, file)
    job = JobOnDisk(job_id, 0, directory, run, attempt, None)
    if not job.config.is_file():
        return None
    events = job.records / "events.jsonl"
    with _reading(events):
        first = next(read_events(events), None)
        created_at_ms = _milliseconds(first["time"]) if first else round(job.config.stat().st_mtime * 1000)
    return replace(job, created_at_ms=created_at_ms)


# --- rebuilding a record ---------------------------------------------------------------------------------------------


class _OutcomeFile(_File):
    """Content of outcome.json, which the process of an attempt writes at its end."""

    attempt: int
    outcome: Literal["succeeded", "failed", "stopped"]
    error: JobError | None = None
    time: datetime


def _build_record(layout: Layout, job: JobOnDisk) -> RestoredJob:
    file = job.file or _file_from_config(job)
    config = _parse(file.config, job.config)
    events = _EventSummary.read(job.records / "events.jsonl", config.training.total_batch_size, file.kind)
    outcomes = _outcomes(job)
    attempt = max([job.attempt, file.attempt, events.attempt, *(outcome.attempt for outcome in outcomes)])
    outcome = next((outcome for outcome in outcomes if outcome.attempt == attempt), None)
    with _reading(job.config):
        section = JobSection.model_validate({"options": file.config.get("job", {}).get("options")})
    spec = JobSpec(file.kind, file.run, config, section)
    status = _status(layout, job, file, attempt, outcome)
    error = outcome.error if outcome is not None else None
    times = [time for time in (file.time, outcome.time if outcome is not None else None) if time is not None]
    return RestoredJob(
        id=job.id,
        kind=file.kind,
        run=file.run,
        dataset=file.dataset,
        recipe=spec.recipe,
        export=spec.export,
        ablation=spec.ablation,
        model=model_of(file.kind, config),
        colour=_colour(job, file),
        status=status,
        config=file.config,
        attempt=attempt,
        created_at_ms=job.created_at_ms,
        started_at_ms=events.started_at_ms,
        finished_at_ms=_milliseconds(max(times)) if status in TERMINAL and times else None,
        gpus=file.gpus,
        priority=file.priority,
        metadata=file.metadata,
        warnings=file.warnings,
        depends_on=file.depends_on,
        progress=events.progress,
        error=(error or file.error) if status == "failed" else None,
        last_seq=events.last_seq,
    )


def _colour(job: JobOnDisk, file: JobFile) -> int | None:
    """The colour that its run has, or was to get."""
    kept = job.run.colour() if job.run is not None and KINDS[file.kind].writes_in_run else None
    return file.colour if kept is None else kept


def _file_from_config(job: JobOnDisk) -> JobFile:
    """Substitute for a missing job.json, derived from the configuration."""
    with _reading(job.config):
        tree = read_tree(job.config)
    config = _parse(tree, job.config)
    kind = maker_of("run") if job.run is not None else kind_without_name(trains=config.execution.train)
    run = job.run.name if job.run is not None else config.experiment_name
    gpus = JobSpec(kind, run, config, JobSection()).gpus
    return JobFile(id=job.id, kind=kind, run=run, gpus=gpus, created_at=job.created_at_ms, config=tree)


def _outcomes(job: JobOnDisk) -> list[_OutcomeFile]:
    """Outcome files; a training that failed before it created a run wrote one into the directory of the job."""
    files = [directory / "outcome.json" for directory in dict.fromkeys((job.records, job.directory))]
    return [_read_as(_OutcomeFile, file) for file in files if file.exists()]


def _status(layout: Layout, job: JobOnDisk, file: JobFile, attempt: int, outcome: _OutcomeFile | None) -> Status:
    if file.attempt == attempt and file.status in TERMINAL:
        return file.status
    if outcome is not None and outcome.outcome != "stopped":
        return outcome.outcome
    if KINDS[file.kind].makes_run and job.run is None and file.run and layout.run(file.run).exists():
        return "cancelled"  # another job has reused the run name, which requires that this job is over
    return "paused"


@dataclass(frozen=True)
class _EventSummary:
    """Progress, attempt and start time of a job, accumulated from its events."""

    progress: Progress
    attempt: int = 0
    last_seq: int = 0
    started_at_ms: int | None = None

    @classmethod
    def read(cls, path: Path, tokens_per_step: int, kind: str) -> _EventSummary:
        summary = cls(Progress.beginning(kind))
        with _reading(path):
            for event in read_events(path):
                summary = summary._add(event, tokens_per_step)
        return summary

    def _add(self, event: Event, tokens_per_step: int) -> _EventSummary:
        last_seq = max(self.last_seq, event["seq"])
        try:
            attempt = max(self.attempt, int(event["attempt"]))
            started_at_ms = self.started_at_ms or _milliseconds(event["time"])
            return _EventSummary(progressed(self.progress, event, tokens_per_step), attempt, last_seq, started_at_ms)
        except (KeyError, TypeError, ValueError):  # the event mirror skips such an event too
            return replace(self, last_seq=last_seq)


def _parse(tree: Tree, path: Path) -> ExperimentConfig:
    with _reading(path):
        return parse_config(tree).config


# --- reading files that may be damaged -------------------------------------------------------------------------------


def _read_as(model: type[_M], path: Path) -> _M:
    with _reading(path):
        return model.model_validate(read_json(path))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise `BadFile` instead of any error that the content of a file causes."""
    try:
        yield
    except BadFile:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelCoreError) as error:
        raise BadFile(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _milliseconds(time: datetime | str) -> int:
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    return round(moment.timestamp() * 1000)
