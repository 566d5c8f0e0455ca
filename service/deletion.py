"""Deletion of a finished job: its record, and on request what it left on disk.

The job is marked as deleted first, so that nothing else can be done with it; then its directories go, and its record
goes last. A deletion that was interrupted therefore leaves the record, and deleting the job again finishes the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from model_core.errors import RunBusy
from model_core.hf.export_folder import export_time, is_complete
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout, read_json
from model_core.storage.trash import (
    empty_trash,
    lock_dataset,
    lock_for_deletion,
    move_dataset_to_trash,
    move_export_to_trash,
    move_to_trash,
)
from service.datasets import read_manifest
from service.deps import Services
from worker.jobs import commands
from worker.jobs.kinds import Resource, kind_of
from worker.jobs.recovery import write_deleted
from worker.jobs.schemas import JobDetail
from worker.jobs.store import JobStore


async def delete(services: Services, job_id: str, *, artifacts: bool) -> None:
    """Delete a job.

    Args:
        services: Services of the process.
        job_id: Id of the job.
        artifacts: Whether to delete what it made too: its runs with their attention records, its dataset or its
            export, and its own directory.

    Raises:
        JobNotFound: There is no such job.
        ActionNotAllowed: The job is not finished.
        RunBusy: A process holds one of its runs, an unfinished job uses one, or one makes the same export.
        DatasetBusy: A process or an unfinished job uses its dataset.
    """
    if not artifacts:
        await services.ask(_forget, services.store, services.layout, job_id)
        return
    job = await services.ask(services.store.detail, job_id)
    await run_in_threadpool(_erase, services.store, services.layout, job)  # takes as long as the disk does


def _forget(store: JobStore, layout: Layout, job_id: str) -> None:
    store.mark_deleted(job_id, with_artifacts=False)
    write_deleted(layout, job_id)
    store.purge(job_id)


def _erase(store: JobStore, layout: Layout, job: JobDetail) -> None:
    _TRASH[kind_of(job.kind).makes](store, layout, job)
    empty_trash(layout, job.id)
    store.purge(job.id)


# --- one function a resource: marks the job as deleted, and moves what it made and its directory to the trash --------


def _trash_runs(store: JobStore, layout: Layout, job: JobDetail) -> None:
    with lock_for_deletion(layout, _runs_made_by(job), job.id) as runs:
        _refuse_if_used(store, [run.name for run in runs if run.name != job.run], job.id)
        store.mark_deleted(job.id, with_artifacts=True)
        move_to_trash(layout, runs, job.id)


def _trash_dataset(store: JobStore, layout: Layout, job: JobDetail) -> None:
    owned = job.dataset if _made_its_dataset(store, layout, job) else None
    with lock_dataset(layout, owned) if owned else contextlib.nullcontext():
        store.mark_deleted(job.id, with_artifacts=owned is not None)
        if owned:
            move_dataset_to_trash(layout, owned, job.id)
        move_to_trash(layout, (), job.id)


def _trash_export(store: JobStore, layout: Layout, job: JobDetail) -> None:
    folder = _export_made_by(layout, job)
    store.mark_deleted(job.id, with_artifacts=True)
    if folder is not None:
        move_export_to_trash(layout, folder, job.id)
    move_to_trash(layout, (), job.id)


def _trash_directory(store: JobStore, layout: Layout, job: JobDetail) -> None:
    store.mark_deleted(job.id, with_artifacts=False)
    move_to_trash(layout, (), job.id)


_TRASH: Mapping[Resource | None, Callable[[JobStore, Layout, JobDetail], None]] = {  # by `JobKind.makes`
    "run": _trash_runs,
    "dataset": _trash_dataset,
    "export": _trash_export,
    None: _trash_directory,
}


def _runs_made_by(job: JobDetail) -> Sequence[str]:
    """Its run, and those that earlier attempts from scratch left; none while the job is not finished."""
    if not job.terminal:
        return ()
    return tuple(dict.fromkeys(filter(None, [job.run, *(attempt.run for attempt in job.attempts)])))


def _refuse_if_used(store: JobStore, left_behind: Sequence[str], job_id: str) -> None:
    """Refuse if an unfinished job uses an earlier run; `mark_deleted` checks the present one itself."""
    for run in left_behind:
        users = store.run(commands.page(run=run, limit=100)).jobs()
        if any(other.id != job_id and not other.terminal for other in users):
            raise RunBusy(run)


def _made_its_dataset(store: JobStore, layout: Layout, job: JobDetail) -> bool:
    """Whether the dataset is its work: it is the last job that was to make it, and it ran when that was made."""
    if job.dataset is None or not job.terminal:
        return False
    [last] = store.run(commands.dataset_jobs([job.dataset]))
    if last is None or last.id != job.id:
        return False
    dataset = Dataset.named(job.dataset, layout.dataset(job.dataset))
    if dataset.missing():
        return True
    manifest = read_manifest(dataset)
    return manifest is not None and (job.started_at or "~") <= manifest["created_at"] <= (job.finished_at or "")


def _export_made_by(layout: Layout, job: JobDetail) -> Path | None:
    """The folder that its outcome names, if the job made it and did not find it there."""
    assert layout.jobs is not None
    path = layout.jobs / job.id / "outcome.json"
    outcome = read_json(path) if path.is_file() else {}
    folder = layout.export(job.run or "", outcome["checkpoint"], outcome["sha256"]) if "sha256" in outcome else None
    if folder is None or not folder.is_dir():
        return None
    if not is_complete(folder):
        return folder  # nobody else can use what is left of it
    return folder if (job.started_at or "~") <= export_time(folder) <= (job.finished_at or "") else None
