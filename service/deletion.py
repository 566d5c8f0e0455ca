"""Deletion of a finished job: its record, and on request its files; and of a run, whichever job made it.

The job is marked as deleted first, so that no other action is possible; then its directories are deleted, and its
record last. After an interrupted deletion the record still exists, and deleting the job again completes the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.attention.heads.ablation_record import delete_result, read_result
from model_core.errors import ResultNotFound, RunBusy, RunNotFound
from model_core.hf.export_folder import export_time, is_complete
from model_core.storage.dataset import Dataset
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run
from model_core.storage.trash import (
    empty_trash,
    is_in_trash,
    lock_dataset,
    lock_for_deletion,
    lock_run_for_deletion,
    move_dataset_to_trash,
    move_export_to_trash,
    move_run_to_trash,
    move_sent_models_to_trash,
    move_to_trash,
    pin_error,
    run_directories,
)
from service.datasets import read_manifest
from service.deps import Services
from service.schemas import View
from worker.jobs import commands
from worker.jobs.kinds import Resource, kind_of
from worker.jobs.recovery import write_deleted
from worker.jobs.schemas import JobDetail, Warned
from worker.jobs.store import JobStore

_RUN_OWNER = "run"  # part of the hidden names of a deleted run


class RunDeletion(View):
    """What a deletion of a run would free."""

    object: Literal["run_deletion"] = "run_deletion"
    run: str
    size_bytes: int = Field(description="of all files that would be deleted")
    run_bytes: int = Field(description="of the run's own directory, with its checkpoints")
    attention_bytes: int = Field(description="of its pictures and the weights behind them")
    export_bytes: int = Field(description="of its folders for transformers")
    checkpoints: list[str] = Field(description="file names of the checkpoints that would be deleted")
    warnings: list[Warned] = Field(description="why a deletion would be refused now")


async def delete_run(services: Services, name: str) -> None:
    """Delete a run with its checkpoints, attention records and exports.

    Args:
        services: Services of the process.
        name: Name of the run.

    Raises:
        RunNotFound: There is no such run.
        RunBusy: A job that is not terminal makes, reads or starts from it, a process holds it, or it is pinned.
        QueueUnavailable: Redis, which knows the jobs, does not answer.
    """
    if await run_in_threadpool(_exists, services.layout, name) and (user := await _user(services, name)) is not None:
        raise user
    await run_in_threadpool(_remove_run, services.layout, name)
    await services.async_store.run(commands.forget_colour(name))


async def preview_run_deletion(services: Services, name: str) -> RunDeletion:
    """Count what `delete_run` would delete.

    Args:
        services: Services of the process.
        name: Name of the run.

    Returns:
        Sizes in bytes, and the reason for which a deletion would be refused now.

    Raises:
        RunNotFound: There is no such run.
        QueueUnavailable: Redis, which knows the jobs, does not answer.
    """
    user = await _user(services, name)
    return await run_in_threadpool(_preview, services.layout, name, user)


async def delete(services: Services, job_id: str, *, artifacts: bool) -> None:
    """Delete a job.

    Args:
        services: Services of the process.
        job_id: Id of the job.
        artifacts: Whether to delete its files too: its runs with their attention records, its dataset, its export
            or its ablation, and its own directory.

    Raises:
        JobNotFound: There is no such job.
        ActionNotAllowed: The job is not finished.
        RunBusy: A process holds one of its runs, an unfinished job uses one, or one makes the same export.
        DatasetBusy: A process or an unfinished job uses its dataset.
    """
    if not artifacts:
        await services.ask(_delete_record, services.store, services.layout, job_id)
        return
    job = await services.ask(services.store.detail, job_id)
    await run_in_threadpool(_delete_all, services.store, services.layout, job)  # may take long on a slow disk


async def _user(services: Services, name: str) -> RunBusy | None:
    """The error about a job that needs a run; None if no job does."""
    user = await services.async_store.run(commands.run_user(name))
    return RunBusy(name, f"is used by {user}, which is not over; wait, or cancel it") if user is not None else None


def _exists(layout: Layout, name: str) -> bool:
    return layout.run(name).is_dir()


def _remove_run(layout: Layout, name: str) -> None:
    try:
        with lock_run_for_deletion(layout, name) as run:
            move_run_to_trash(layout, run, _RUN_OWNER)
    except RunNotFound:
        if not is_in_trash(layout, name, _RUN_OWNER):  # else an interrupted deletion is completed
            raise
    empty_trash(layout, _RUN_OWNER)


def _preview(layout: Layout, name: str, user: RunBusy | None) -> RunDeletion:
    run = Run.open(layout.run(name))
    sizes = {content: _size_bytes(path) for content, path in run_directories(layout, name).items()}
    obstacles = filter(None, (user, pin_error(run)))
    return RunDeletion(
        run=name,
        size_bytes=sum(sizes.values()),
        run_bytes=sizes["run"],
        attention_bytes=sizes["attention"],
        export_bytes=sizes["exports"],
        checkpoints=[info.file for info in run.checkpoints()],
        warnings=[Warned(code=error.code, detail=str(error)) for error in obstacles],
    )


def _size_bytes(directory: Path) -> int:
    """Size of the files of a directory; files that vanish meanwhile count nothing."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _delete_record(store: JobStore, layout: Layout, job_id: str) -> None:
    job = store.mark_deleted(job_id, with_artifacts=False)
    write_deleted(layout, job_id)
    store.purge(job_id, keeps_run=job.run is not None and _exists(layout, job.run))


def _delete_all(store: JobStore, layout: Layout, job: JobDetail) -> None:
    _TRASH[kind_of(job.kind).makes](store, layout, job)
    empty_trash(layout, job.id)
    store.purge(job.id)


# --- one function per resource: marks the job as deleted, and moves the resource and its directory to the trash ------


def _trash_runs(store: JobStore, layout: Layout, job: JobDetail) -> None:
    with lock_for_deletion(layout, _run_names(job), job.id) as runs:
        _refuse_if_used(store, [run.name for run in runs if run.name != job.run], job.id)
        store.mark_deleted(job.id, with_artifacts=True)
        if job.run is not None and "source" in kind_of(job.kind).options:
            move_sent_models_to_trash(layout, job.run, job.id)
        move_to_trash(layout, runs, job.id)


def _trash_dataset(store: JobStore, layout: Layout, job: JobDetail) -> None:
    owned = job.dataset if _owns_dataset(store, layout, job) else None
    with lock_dataset(layout, owned) if owned else contextlib.nullcontext():
        store.mark_deleted(job.id, with_artifacts=owned is not None)
        if owned:
            move_dataset_to_trash(layout, owned, job.id)
        move_to_trash(layout, (), job.id)


def _trash_export(store: JobStore, layout: Layout, job: JobDetail) -> None:
    folder = _find_own_export(layout, job)
    store.mark_deleted(job.id, with_artifacts=True)
    if folder is not None:
        move_export_to_trash(layout, folder, job.id)
    move_to_trash(layout, (), job.id)


def _trash_ablation(store: JobStore, layout: Layout, job: JobDetail) -> None:
    assert layout.jobs is not None
    path = layout.jobs / job.id / "outcome.json"
    name = read_json(path).get("name") if path.is_file() else None
    is_own = name is not None and _made_ablation(layout, job, name)
    store.mark_deleted(job.id, with_artifacts=True)
    if name is not None and is_own:
        delete_result(layout, job.run or "", name)
    move_to_trash(layout, (), job.id)


def _made_ablation(layout: Layout, job: JobDetail, name: str) -> bool:
    """Whether the job wrote the result: another job may have written it before."""
    try:
        created_at: str = read_result(layout, job.run or "", name)["created_at"]
    except ResultNotFound:
        return False
    return (job.started_at or "~") <= created_at <= (job.finished_at or "")


def _trash_directory(store: JobStore, layout: Layout, job: JobDetail) -> None:
    store.mark_deleted(job.id, with_artifacts=False)
    move_to_trash(layout, (), job.id)


_TRASH: Mapping[Resource | None, Callable[[JobStore, Layout, JobDetail], None]] = {  # by `JobKind.makes`
    "run": _trash_runs,
    "dataset": _trash_dataset,
    "export": _trash_export,
    "ablation": _trash_ablation,
    None: _trash_directory,
}


def _run_names(job: JobDetail) -> Sequence[str]:
    """Runs of all attempts, as an attempt from scratch creates a new run; none while the job is not finished."""
    if not job.terminal:
        return ()
    return tuple(dict.fromkeys(filter(None, [job.run, *(attempt.run for attempt in job.attempts)])))


def _refuse_if_used(store: JobStore, earlier_runs: Sequence[str], job_id: str) -> None:
    """Refuse if an unfinished job uses an earlier run; `mark_deleted` checks the current run."""
    for run in earlier_runs:
        users = store.run(commands.page(run=run, limit=100)).jobs()
        if any(other.id != job_id and not other.terminal for other in users):
            raise RunBusy(run)


def _owns_dataset(store: JobStore, layout: Layout, job: JobDetail) -> bool:
    """Whether the job made its dataset: no later job was to make it, and it was made while the job ran."""
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


def _find_own_export(layout: Layout, job: JobDetail) -> Path | None:
    """Folder of the export in the outcome, if the job wrote it; None if the export existed before the job."""
    assert layout.jobs is not None
    path = layout.jobs / job.id / "outcome.json"
    outcome = read_json(path) if path.is_file() else {}
    folder = layout.export(job.run or "", outcome["checkpoint"], outcome["sha256"]) if "sha256" in outcome else None
    if folder is None or not folder.is_dir():
        return None
    if not is_complete(folder):
        return folder  # an incomplete export is of no use to other jobs
    return folder if (job.started_at or "~") <= export_time(folder) <= (job.finished_at or "") else None
