"""Deletion of runs, exports and datasets in two steps: rename to a hidden name, then delete.

The hidden name contains the id of the job, or another owner, so after a crash the same call completes the deletion.
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

_UPLOAD = r"[0-9a-f]{16}"  # name of a folder of uploaded files: a hash of their content
_EXPORTS_LOCK, _POLL_S = ".lock", 0.2
_LOCK_TIMEOUT_S = 10.0  # the holder only renames a few directories


@contextlib.contextmanager
def lock_for_deletion(layout: Layout, names: Iterable[str], job_id: str) -> Iterator[tuple[Run, ...]]:
    """Lock the runs that a job owns.

    A global lock admits one deletion at a time: otherwise a run could be deleted between the check of its owner and the
    acquisition of its lock, which would create its directory again.

    Args:
        layout: Directories of the data root.
        names: Names of runs that the job may own; another job may have reused a name.
        job_id: Id of the job.

    Yields:
        The runs of the job, each locked.

    Raises:
        RunBusy: Another process holds the lock of a run.
    """
    candidates = [Run(layout.run(name)) for name in names]
    with _global_lock(layout.exp / ".removal.lock", job_id), contextlib.ExitStack() as stack:
        runs = tuple(run for run in candidates if run.path.is_dir() and run.attempt()["job_id"] == job_id)
        for run in runs:
            stack.callback(run.lock().release)
        yield runs


@contextlib.contextmanager
def lock_run_for_deletion(layout: Layout, name: str) -> Iterator[Run]:
    """Lock one run, whichever job owns it. See `lock_for_deletion`.

    Args:
        layout: Directories of the data root.
        name: Name of the run.

    Yields:
        The locked run.

    Raises:
        RunNotFound: There is no such run.
        RunBusy: Another process holds its lock, or a checkpoint of it is pinned.
    """
    with _global_lock(layout.exp / ".removal.lock", name), contextlib.ExitStack() as stack:
        run = Run.open(layout.run(name))
        stack.callback(run.lock().release)
        if (error := pin_error(run)) is not None:
            raise error
        yield run


def pin_error(run: Run) -> RunBusy | None:
    """Check that no checkpoint of a run is pinned.

    Args:
        run: The run.

    Returns:
        The error about a pinned one; None if no checkpoint is pinned.
    """
    pinned = next((info.file for info in run.checkpoints() if run.is_pinned(info.file)), None)
    return RunBusy(run.name, f"has a pinned checkpoint, {pinned}; remove the pin first") if pinned else None


@contextlib.contextmanager
def lock_dataset(layout: Layout, name: str) -> Iterator[None]:
    """Lock the directory of a dataset, if it exists, so that no process writes to it.

    Args:
        layout: Directories of the data root.
        name: Name of the dataset.

    Raises:
        DatasetBusy: A preparation holds the lock.
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
    """Hold the lock of a run's exports while an export is written or deleted.

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


def move_dataset_to_trash(layout: Layout, name: str, owner: str) -> None:
    """Hide a dataset, and the files that were uploaded for it, under names that `empty_trash` finds.

    Requires the lock of the dataset. The directory of an incomplete dataset stays if it contains visible files: a
    preparation does not leave any, so they belong to a user.

    Args:
        layout: Directories of the data root.
        name: Name of the dataset.
        owner: Owner in the hidden name: the id of the job, or another unique text.
    """
    directory = layout.dataset(name)
    if not Dataset.named(name, directory).missing() or not _has_visible_files(directory):
        _hide(directory, owner)
    for uploaded in uploads_of(layout, name):
        _hide(uploaded, owner)


def uploads_of(layout: Layout, name: str) -> list[Path]:
    """List the folders that were uploaded for a dataset, without folders that a user copied there.

    Args:
        layout: Directories of the data root.
        name: Name of the dataset.

    Returns:
        The folders, by name.
    """
    assert layout.uploads is not None
    return [path for path in sorted((layout.uploads / name).glob("*")) if re.fullmatch(_UPLOAD, path.name)]


def run_directories(layout: Layout, run: str) -> dict[str, Path]:
    """List the directories that are deleted with a run.

    Args:
        layout: Directories of the data root.
        run: Name of the run.

    Returns:
        Paths by content: ``attention``, ``exports`` and ``run``. The last frees the name of the run.
    """
    exports = {"exports": layout.exports_of(run)} if layout.exports is not None else {}
    return {"attention": layout.attention_of(run), **exports, "run": layout.run(run)}


def is_in_trash(layout: Layout, run: str, owner: str) -> bool:
    """Check whether a run was moved to the trash and is not deleted yet.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        owner: Owner in the hidden names, as of `move_run_to_trash`.

    Returns:
        Whether an interrupted deletion left its directory.
    """
    return _hidden(layout.run(run), owner).exists()


def move_run_to_trash(layout: Layout, run: Run, owner: str) -> None:
    """Hide a run with its attention records and exports.

    Args:
        layout: Directories of the data root.
        run: Locked run, from `lock_for_deletion` or `lock_run_for_deletion`.
        owner: Owner in the hidden names: the id of the job, or another unique text.
    """
    for path in run_directories(layout, run.name).values():
        _hide(path, owner)


def move_to_trash(layout: Layout, runs: Iterable[Run], job_id: str) -> None:
    """Hide the directories of a job: its runs with their attention records and exports, and its own directory.

    Args:
        layout: Directories of the data root.
        runs: Locked runs, from `lock_for_deletion`.
        job_id: Id of the job.
    """
    for run in runs:
        move_run_to_trash(layout, run, job_id)
    if layout.jobs is not None:
        _hide(layout.jobs / job_id, job_id)


def move_sent_models_to_trash(layout: Layout, run: str, owner: str) -> None:
    """Hide the models that clients sent to become a run, which an import that did not succeed leaves.

    Args:
        layout: Directories of the data root.
        run: Name of the run.
        owner: Owner in the hidden name: the id of the job, or another unique text.
    """
    _hide(layout.sent_models(run), owner)


def move_export_to_trash(layout: Layout, folder: Path, job_id: str) -> None:
    """Hide the folder of an export.

    Args:
        layout: Directories of the data root.
        folder: Folder of the export; it need not exist.
        job_id: Id of the job that wrote it.
    """
    with lock_exports(layout, folder.parent.name):
        _hide(folder, job_id)


def empty_trash(layout: Layout, owner: str) -> None:
    """Delete everything that was moved to the trash for an owner.

    Args:
        layout: Directories of the data root.
        owner: Owner in the hidden names: the id of the job, or another unique text.
    """
    uploads = layout.uploads.glob("*") if layout.uploads is not None else ()  # those of models, which are hidden, too
    exports = (layout.exports, *layout.exports.glob("*")) if layout.exports is not None else ()
    for parent in filter(None, (layout.exp, layout.attention, layout.jobs, layout.datasets, *exports, *uploads)):
        for path in parent.glob(f".*.{owner}.removed"):
            _delete(path)


@contextlib.contextmanager
def _global_lock(file: Path, job_id: str) -> Iterator[None]:
    try:
        with FileLock(file, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise RunBusy(job_id) from None


def _has_visible_files(directory: Path) -> bool:
    return directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir())


def _hide(path: Path, owner: str) -> None:
    if path.exists():
        hidden = _hidden(path, owner)
        _delete(hidden)
        path.rename(hidden)
        sync_directory(path.parent)


def _hidden(path: Path, owner: str) -> Path:
    return path.with_name(f".{path.name}.{owner}.removed")


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # another request may delete it at the same time
    if path.exists():
        shutil.rmtree(path)  # raises the error
