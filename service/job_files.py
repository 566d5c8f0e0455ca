"""Files of a job: its events, its log, and the output of its process. All are read while they grow.

A training writes into its run's directory, which counts only while it belongs to this job: another job may have taken
the name since.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from model_core.storage.files import Layout
from model_core.storage.run import Run
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import Job

LogSource = Literal["log", "process"]

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class LogFile:
    """A log of a job, whether or not the file exists yet.

    Attributes:
        source: `log` is written for people; `process` is the output of the job's process.
        path: Path of the file.
    """

    source: LogSource
    path: Path


def events_path(layout: Layout, job: Job) -> Path:
    """Locate the event file of a job.

    Args:
        layout: Paths of the data root.
        job: The job.

    Returns:
        Path of the file, which may not exist yet.
    """
    return _output_directory(layout, job) / "events.jsonl"


def log_file(layout: Layout, job: Job, source: LogSource | None = None) -> LogFile:
    """Locate a log of a job.

    Args:
        layout: Paths of the data root.
        job: The job.
        source: Which log; None takes the log for people, or the output of the process while there is none.

    Returns:
        The log, whose file may not exist yet.
    """
    log = LogFile("log", _output_directory(layout, job) / "logs" / "log.txt")
    if source == "log" or (source is None and log.path.is_file()):
        return log
    return LogFile("process", _job_directory(layout, job) / "child.log")


def open_log(log: LogFile) -> BinaryIO:
    """Open a log.

    Args:
        log: The log.

    Returns:
        The open file; an empty one if it does not exist yet.
    """
    try:
        return log.path.open("rb")
    except FileNotFoundError:
        return Path(os.devnull).open("rb")


def tail_offset(file: BinaryIO, lines: int, end: int) -> int:
    """Find where the last lines of a text begin.

    Args:
        file: The open file.
        lines: Number of lines; a last line without a line feed counts.
        end: Offset at which the text ends, in bytes.

    Returns:
        Offset of the first of these lines.
    """
    if lines == 0 or end == 0:
        return end
    position = end - 1  # the last line feed ends a line and begins none
    while position > 0:
        begin = max(0, position - _BLOCK_BYTES)
        file.seek(begin)
        block = file.read(position - begin)
        while (found := block.rfind(b"\n")) >= 0:
            lines -= 1
            if lines == 0:
                return begin + found + 1
            block = block[:found]
        position = begin
    return 0


def _output_directory(layout: Layout, job: Job) -> Path:
    if kind_of(job.kind).writes_in_run and job.run and Run(layout.run(job.run)).attempt()["job_id"] == job.id:
        return layout.run(job.run)
    return _job_directory(layout, job)


def _job_directory(layout: Layout, job: Job) -> Path:
    assert layout.jobs is not None
    return layout.jobs / job.id
