"""Deleting a job that is over: its record, and if asked for the bytes it left.

The job is doomed first, so that nobody begins anything with it; then its directories go; its record goes last. So
whoever dies in between has left a record, and deleting it again finishes the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from model_core.errors import RunBusy
from model_core.hf.export_folder import is_complete, made_at
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
from service.datasets import manifest_of
from service.deps import Services
from worker.jobs import commands
from worker.jobs.kinds import KINDS
from worker.jobs.recovery import write_off
from worker.jobs.schemas import JobDetail
from worker.jobs.store import JobStore


async def delete(services: Services, job_id: str, *, artifacts: bool) -> None:
    """Forget a job.

    Args:
        services: Where to ask.
        job_id: The job.
        artifacts: Whether the runs that it made, what was captured of them, the dataset or the export that it made,
            and its own directory go too.

    Raises:
        JobNotFound: There is none of that id.
        ActionNotAllowed: It is not over.
        RunBusy: A process holds a run of it, a job that is not over uses one, or one makes the same export.
        DatasetBusy: Likewise of its dataset.
    """
    if not artifacts:
        await services.ask(_forget, services.store, services.layout, job_id)
        return
    job = await services.ask(services.store.detail, job_id)
    erase = {"prepare": _erase_preparation, "export": _erase_export}
    await run_in_threadpool(
        erase.get(job.kind, _erase), services.store, services.layout, job
    )  # as long as the disk takes


def _forget(store: JobStore, layout: Layout, job_id: str) -> None:
    store.mark_deleted(job_id, with_artifacts=False)
    write_off(layout, job_id)
    store.purge(job_id)


def _erase(store: JobStore, layout: Layout, job: JobDetail) -> None:
    with lock_for_deletion(layout, _runs_made_by(job), job.id) as runs:
        _nobody_needs(store, [run.name for run in runs if run.name != job.run], job.id)
        store.mark_deleted(job.id, with_artifacts=True)
        move_to_trash(layout, runs, job.id)
    empty_trash(layout, job.id)
    store.purge(job.id)


def _erase_preparation(store: JobStore, layout: Layout, job: JobDetail) -> None:
    owned = job.dataset if _made_its_dataset(store, layout, job) else None
    with lock_dataset(layout, owned) if owned else contextlib.nullcontext():
        store.mark_deleted(job.id, with_artifacts=owned is not None)
        if owned:
            move_dataset_to_trash(layout, owned, job.id)
        move_to_trash(layout, (), job.id)
    empty_trash(layout, job.id)
    store.purge(job.id)


def _erase_export(store: JobStore, layout: Layout, job: JobDetail) -> None:
    folder = _export_made_by(layout, job)
    store.mark_deleted(job.id, with_artifacts=True)
    if folder is not None:
        move_export_to_trash(layout, folder, job.id)
    move_to_trash(layout, (), job.id)
    empty_trash(layout, job.id)
    store.purge(job.id)


def _export_made_by(layout: Layout, job: JobDetail) -> Path | None:
    """The folder that its outcome names, if that was made while it ran and not found there."""
    assert layout.jobs is not None
    outcome = layout.jobs / job.id / "outcome.json"
    told = read_json(outcome) if outcome.is_file() else {}
    folder = layout.export(job.run or "", told["checkpoint"], told["sha256"]) if "sha256" in told else None
    if folder is None or not folder.is_dir():
        return None
    if not is_complete(folder):
        return folder  # nobody else can use what is left of it
    return folder if (job.started_at or "~") <= made_at(folder) <= (job.finished_at or "") else None


def _made_its_dataset(store: JobStore, layout: Layout, job: JobDetail) -> bool:
    """Whether what is there is its work: it is the last that was to make it, and it ran when that was made."""
    if job.dataset is None or not job.terminal:
        return False
    [last] = store.run(commands.dataset_jobs([job.dataset]))
    if last is None or last.id != job.id:
        return False
    dataset = Dataset.named(job.dataset, layout.dataset(job.dataset))
    if dataset.missing():
        return True
    manifest = manifest_of(dataset)
    return manifest is not None and (job.started_at or "~") <= manifest["created_at"] <= (job.finished_at or "")


def _runs_made_by(job: JobDetail) -> Sequence[str]:
    """Its run, and those that it left behind when it began from scratch; none while it is not over."""
    if not KINDS[job.kind].makes_run or not job.terminal:
        return ()
    return tuple(dict.fromkeys(filter(None, [job.run, *(attempt.run for attempt in job.attempts)])))


def _nobody_needs(store: JobStore, left_behind: Sequence[str], job_id: str) -> None:
    """The store looks after the job's present run itself."""
    for run in left_behind:
        users = store.run(commands.page(run=run, limit=100)).jobs()
        if any(other.id != job_id and not other.terminal for other in users):
            raise RunBusy(run)
