"""Removing what a job left on disk: out of sight at once, then byte by byte.

A directory is renamed to a hidden name that tells whose it was, and removed under that name. Whoever is killed in
between finishes by doing the same again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from model_core.errors import RunBusy
from model_core.records.files import Layout, sync_directory
from model_core.records.run import Run

_PATIENCE_S = 10.0  # others only rename a few directories


@contextlib.contextmanager
def holding(layout: Layout, names: Iterable[str], job_id: str) -> Iterator[tuple[Run, ...]]:
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


def hide(layout: Layout, runs: Iterable[Run], job_id: str) -> None:
    """Take a job's directories out of sight: its runs, which it holds, what was made of them, and its own.

    Args:
        layout: Where they lie.
        runs: As `holding` yields them.
        job_id: Whose they are.
    """
    for run in runs:
        _rename(layout.attention_of(run.name), job_id)  # first: without the run its name is free for others
        if layout.exports is not None:
            _rename(layout.exports / run.name, job_id)
        _rename(run.path, job_id)
    if layout.jobs is not None:
        _rename(layout.jobs / job_id, job_id)


def remove_hidden(layout: Layout, job_id: str) -> None:
    """Free the bytes of everything of a job that was taken out of sight."""
    for parent in filter(None, (layout.exp, layout.attention, layout.exports, layout.jobs)):
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
