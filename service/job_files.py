"""What a job leaves on disk: its events, a log for people, and what its process printed; all read while they grow.

A training's records are its run's, as long as the run is this job's: another may have taken the name since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from model_core.storage.files import Layout
from model_core.storage.run import Run
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import Job

LogSource = Literal["log", "process"]

_BLOCK = 1 << 16


@dataclass(frozen=True)
class LogFile:
    """A text that a job left, whether or not it is there yet.

    Attributes:
        source: ``log`` is written for people; ``process`` is all that the job's process printed.
        path: Where it lies.
    """

    source: LogSource
    path: Path


def events_path(layout: Layout, job: Job) -> Path:
    """A job's event file, whether or not it is there yet."""
    return _directory(layout, job) / "events.jsonl"


def log_file(layout: Layout, job: Job, source: LogSource | None = None) -> LogFile:
    """A job's log; unless it is asked for by name, what the process printed while there is no log."""
    log = LogFile("log", _directory(layout, job) / "logs" / "log.txt")
    if source == "log" or (source is None and log.path.is_file()):
        return log
    return LogFile("process", _own(layout, job) / "child.log")


def _directory(layout: Layout, job: Job) -> Path:
    if kind_of(job.kind).makes_run and job.run and Run(layout.run(job.run)).attempt()["job_id"] == job.id:
        return layout.run(job.run)
    return _own(layout, job)


def _own(layout: Layout, job: Job) -> Path:
    assert layout.jobs is not None
    return layout.jobs / job.id


def file_size(path: Path) -> int:
    """How many bytes a file has now; none if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_blocks(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """Read a part of a file, block by block.

    Args:
        path: The file.
        begin: The part's first byte.
        end: The byte after its last; where nothing is to be read, the file need not be there.
    """
    if begin >= end:
        return
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (block := file.read(min(end - begin, _BLOCK))):
            begin += len(block)
            yield block


def tail_offset(path: Path, lines: int, end: int) -> int:
    """Where the last lines before `end` begin; a last line without its line feed counts too."""
    if lines == 0 or end == 0:
        return end
    with path.open("rb") as file:
        return _start_of_tail(file, lines, end)


def _start_of_tail(file: BinaryIO, lines: int, end: int) -> int:
    position = end - 1  # the last line feed ends a line and begins none
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
