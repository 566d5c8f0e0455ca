"""What a job leaves on disk: its events, and a log for people that is read while it grows.

A training's records are its run's, as long as the run is this job's: another may have taken the name since.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from model_core.records.files import Layout
from model_core.records.run import Run
from worker.jobs.job import Job

_BLOCK = 1 << 16


def events_of(layout: Layout, job: Job) -> Path:
    """A job's event file, whether or not it is there yet."""
    return _directory(layout, job) / "events.jsonl"


def log_of(layout: Layout, job: Job) -> Path:
    """A job's log; before there is one, what its process printed."""
    log = _directory(layout, job) / "logs" / "log.txt"
    return log if log.is_file() else _own(layout, job) / "child.log"


def _directory(layout: Layout, job: Job) -> Path:
    if job.kind == "train" and Run(layout.run(job.run)).attempt()["job_id"] == job.id:
        return layout.run(job.run)
    return _own(layout, job)


def _own(layout: Layout, job: Job) -> Path:
    assert layout.jobs is not None
    return layout.jobs / job.id


def read_log(path: Path, tail: int | None = None) -> Iterator[bytes]:
    """Read a file up to the end it has now.

    Args:
        path: The log; no file is an empty log.
        tail: Only so many lines from the end; None: all.

    Yields:
        Blocks of bytes.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        end = file.seek(0, 2)
        left = end - file.seek(0 if tail is None else _start_of_tail(file, end, tail))
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            left -= len(block)
            yield block


def _start_of_tail(file: BinaryIO, end: int, lines: int) -> int:
    """Where the last lines begin; a last line without its line feed counts too."""
    if lines == 0 or end == 0:
        return end
    position = end - 1  # the file's last line feed ends a line and begins none
    while position > 0:
        begin = max(0, position - _BLOCK)
        file.seek(begin)
        block = file.read(position - begin)
        while (found := block.rfind(b"\n")) >= 0:
            lines -= 1
            if lines == 0:
                return begin + found + 1
            block = block[:found]
        position = begin
    return 0
