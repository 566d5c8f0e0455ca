"""Deletion of runs, exports and datasets in two steps: rename to a hidden name, then delete.

The hidden name contains the owner's id, so after a kill the same call finishes the deletion.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from model_core.errors import DatasetBusy, RunBusy
from model_core.storage.dataset import LOCK, Dataset
from model_core.storage.files import Layout, sync_directory
from model_core.storage.run import Run

UPLOAD = r"[0-9a-f]{16}"  # a folder of uploaded files, by what is in them
_EXPORTS_LOCK, _POLL_S = ".lock", 0.2
_PATIENCE_S = 10.0  # others only rename a few directories


@contextlib.contextmanager
def lock_for_deletion(layout: Layout, names: Iterable[str], job_id: str) -> Iterator[tuple[Run, ...]]:
    """Hold those of some runs that are a job's own.

    One job at a time: else a run could be gone between the look at it and its lock, which would make it anew.

    Args:
        layout: Where they lie.
        names: Runs that it may have made; another job may have taken a name since.
        job_id: Whose they are.

    Yields:
        The runs, each under its lock.

    Raises:
        RunBusy: Another process holds one.
    """
    wanted = [Run(layout.run(name)) for name in names]
    with _alone(layout.exp / ".removal.lock", job_id), contextlib.ExitStack() as stack:
        runs = tuple(run for run in wanted if run.path.is_dir() and run.attempt()["job_id"] == job_id)
        for run in runs:
            stack.callback(run.lock().release)
        yield runs


@contextlib.contextmanager
def lock_dataset(layout: Layout, name: str) -> Iterator[None]:
    """Hold a dataset's directory, if there is one, so that nobody writes it.

    Args:
        layout: Where it lies.
        name: The dataset's.

    Raises:
        DatasetBusy: A preparation holds it.
    """
    directory = layout.dataset(name)
    with contextlib.ExitStack() as stack:
        if directory.is_dir():
            try:
                stack.enter_context(FileLock(directory / LOCK, timeout=0))
            except Timeout:
                raise DatasetBusy(name, "a preparation") from None
        yield


@contextlib.contextmanager
def lock_exports(layout: Layout, run: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a run's exports while one is made or removed.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        check: Called between attempts to take the lock; an exception from it ends the wait.
    """
    home = layout.exports_of(run)
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / _EXPORTS_LOCK)
    while not lock.is_locked:
        check()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_POLL_S)
    try:
        yield
    finally:
        lock.release()


def move_dataset_to_trash(layout: Layout, name: str, whose: str) -> None:
    """Take a dataset that is held out of sight, with the files that were uploaded for it.

    Of a dataset that was never ready only what a preparation left goes: other files are somebody's own.

    Args:
        layout: Where it lies.
        name: The dataset's.
        whose: What its hidden name tells.
    """
    directory = layout.dataset(name)
    if not Dataset.named(name, directory).missing() or not _holds_files_of_others(directory):
        _rename(directory, whose)
    for uploaded in uploads_of(layout, name):
        _rename(uploaded, whose)


def _holds_files_of_others(directory: Path) -> bool:
    return directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir())


def uploads_of(layout: Layout, name: str) -> list[Path]:
    """List the folders that were uploaded for a dataset; folders that a person put there are not among them.

    Args:
        layout: Directories of the data root.
        name: Name of the dataset.

    Returns:
        The folders, by name.
    """
    assert layout.uploads is not None
    return [path for path in sorted((layout.uploads / name).glob("*")) if re.fullmatch(UPLOAD, path.name)]


def move_to_trash(layout: Layout, runs: Iterable[Run], job_id: str) -> None:
    """Take a job's directories out of sight: its runs, which it holds, what was made of them, and its own.

    Args:
        layout: Where they lie.
        runs: As `lock_for_deletion` yields them.
        job_id: Whose they are.
    """
    for run in runs:
        _rename(layout.attention_of(run.name), job_id)  # first: without the run its name is free for others
        if layout.exports is not None:
            _rename(layout.exports / run.name, job_id)
        _rename(run.path, job_id)
    if layout.jobs is not None:
        _rename(layout.jobs / job_id, job_id)


def move_export_to_trash(layout: Layout, folder: Path, job_id: str) -> None:
    """Take an export out of sight.

    Args:
        layout: Where it lies.
        folder: The export's; it may be gone.
        job_id: Whose it is.
    """
    with lock_exports(layout, folder.parent.name):
        _rename(folder, job_id)


def empty_trash(layout: Layout, job_id: str) -> None:
    """Delete everything of a job that was moved to the trash.

    Args:
        layout: Directories of the data root.
        job_id: The job.
    """
    uploads = layout.uploads.glob("*") if layout.uploads is not None else ()
    exports = (layout.exports, *layout.exports.glob("*")) if layout.exports is not None else ()
    for parent in filter(None, (layout.exp, layout.attention, layout.jobs, layout.datasets, *exports, *uploads)):
        for path in parent.glob(f".*.{job_id}.removed"):
            _remove(path)


@contextlib.contextmanager
def _alone(file: Path, job_id: str) -> Iterator[None]:
    try:
        with FileLock(file, timeout=_PATIENCE_S):
            yield
    except Timeout:
        raise RunBusy(job_id) from None


def _rename(path: Path, job_id: str) -> None:
    if path.exists():
        hidden = path.with_name(f".{path.name}.{job_id}.removed")
        _remove(hidden)
        path.rename(hidden)
        sync_directory(path.parent)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # two requests may be at it
    if path.exists():
        shutil.rmtree(path)  # and says why it cannot
