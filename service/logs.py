"""Log of a job as text: whole, in part, or streamed line by line while it grows."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.storage.files import Layout
from service.deps import Services
from service.event_stream import POLL_INTERVAL_S, reload_job, status_frame
from service.job_files import LogFile, LogSource, log_file, open_log, tail_offset
from service.protocol.file_response import FileResponse, file_size, read_blocks
from service.protocol.negotiation import ByteRange, parse_range
from service.protocol.server_sent_events import PING, RETRY, frame, wait_until_set
from worker.jobs.schemas import Job

TEXT = "text/plain"
POSITION_PATTERN = r"^([A-Za-z0-9_-]{1,63}:)?\d{1,18}$"
_FILE_POLL_S = 0.5  # growth of a file sends no notification
_MAX_EVENT_BYTES = 1 << 16  # a longer line is sent in several events


@dataclass(frozen=True)
class LogPosition:
    """How far a client has read, as written in `id:` and Last-Event-ID.

    Attributes:
        text: Which text: empty for the job's first log, `process` while there is no log, and the name of the run after
            a retry from scratch.
        offset: Offset after the last byte that was sent.
    """

    text: str = ""
    offset: int = 0

    @classmethod
    def of(cls, event_id: str) -> LogPosition:
        """Parse a position.

        Args:
            event_id: Value of Last-Event-ID that matches `POSITION_PATTERN`.

        Returns:
            The position.
        """
        text, _, offset = event_id.rpartition(":")
        return cls(text, int(offset))

    def __str__(self) -> str:
        return f"{self.text}:{self.offset}" if self.text else str(self.offset)


def text_response(
    layout: Layout, job: Job, source: LogSource | None, *, tail: int | None, byte_range: str | None
) -> Response:
    """Serve a log, or a part of it, up to its present end.

    Args:
        layout: Paths of the data root.
        job: The job.
        source: Which log; None takes the log for people, or the output of the process while there is none.
        tail: Number of lines from the end, whatever the range; None serves all.
        byte_range: The Range header.

    Returns:
        A streaming response with status 200, or 206 for a range.

    Raises:
        RangeNotSatisfiable: The range begins after the end.
    """
    file = open_log(log_file(layout, job, source))
    try:
        size = file_size(file)
        part = parse_range(byte_range, size) if tail is None else None
        begin = 0 if tail is None else tail_offset(file, tail, size)
    except BaseException:
        file.close()
        raise
    headers = {"Cache-Control": "no-store", "Accept-Ranges": "bytes" if tail is None else "none"}
    shown = part or ByteRange(begin, size, size)
    return FileResponse(file, shown, is_range=part is not None, media_type=TEXT, headers=headers)


@dataclass(frozen=True)
class LogReader:
    """Reads the log of a job whose files and run may change meanwhile.

    Attributes:
        layout: Paths of the data root.
        source: Which log, as `text_response` takes it.
        first_run: Run of the job's first attempt; None without one.
    """

    layout: Layout
    source: LogSource | None
    first_run: str | None

    def position_before_end(self, job: Job, tail: int) -> LogPosition:
        """Find the position of the last lines.

        Args:
            job: The job as it is now.
            tail: Number of lines before the end.

        Returns:
            Position of the first of these lines.
        """
        log = self._log(job)
        with open_log(log) as file:
            return LogPosition(self._text(job, log), tail_offset(file, tail, file_size(file)))

    def read_after(self, job: Job, position: LogPosition) -> tuple[str, LogPosition] | None:
        """Read the next lines.

        Args:
            job: The job as it is now.
            position: Position after the last line that was sent.

        Returns:
            The lines and the position after them; None while there are none.
        """
        log = self._log(job)
        text = self._text(job, log)
        with open_log(log) as file:
            is_same = position.text == text and position.offset <= file_size(file)
            offset = position.offset if is_same else 0
            data = b"".join(read_blocks(file, offset, offset + _MAX_EVENT_BYTES))
        lines, read_bytes = _whole_lines(data, is_over=job.terminal)
        if log.source == "process" and self._log(job) != log:
            return self.read_after(job, position)  # the log was created meanwhile, with the same lines
        return (lines, LogPosition(text, offset + read_bytes)) if read_bytes else None

    def _log(self, job: Job) -> LogFile:
        return log_file(self.layout, job, self.source)

    def _text(self, job: Job, log: LogFile) -> str:
        if log.source == "process":
            return "process" if self.source is None else ""
        return job.run if job.run and job.run != self.first_run else ""


async def follow_log(services: Services, job: Job, reader: LogReader, position: LogPosition) -> AsyncIterator[bytes]:
    """Stream a log until the job is terminal and all lines are sent.

    Args:
        services: Services of the process.
        job: The job as it is now.
        reader: Reader of its log.
        position: How far the client has read.

    Yields:
        Formatted events with whole lines, comments during silence, and at the end the status of the job.
    """
    ping_s = services.settings.ping_s
    with services.changes.follow(job.id) as changed:
        yield RETRY
        changed.set()  # the job may have changed before
        sent_at = time.monotonic()
        while not services.changes.closing:
            if changed.is_set():
                changed.clear()
                current = await reload_job(services, job)
                if current is None:
                    return
                job = current
            while found := await run_in_threadpool(reader.read_after, job, position):
                text, position = found
                yield frame({"text": text}, event="log", id=str(position))
                sent_at = time.monotonic()
            if job.terminal:
                yield status_frame(job, job.history[-1] if job.history else None)
                return
            if time.monotonic() - sent_at >= ping_s:
                yield PING
                sent_at = time.monotonic()
            await asyncio.sleep(POLL_INTERVAL_S)
            await wait_until_set(changed, min(_FILE_POLL_S, ping_s))


def _whole_lines(data: bytes, *, is_over: bool) -> tuple[str, int]:
    """Whole lines of a block and their length in bytes; a line longer than the block is cut between characters."""
    end = data.rfind(b"\n") + 1
    is_full = len(data) == _MAX_EVENT_BYTES
    if (is_full and end == 0) or (is_over and not is_full):
        end = len(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data[:end])
    return text, end - len(decoder.getstate()[0])
