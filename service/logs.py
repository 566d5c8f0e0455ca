"""A job's log as text: whole, in part, or told line by line while it grows."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from model_core.storage.files import Layout
from service.deps import Services
from service.event_stream import PING, POLL_INTERVAL_S, RETRY, frame, reload_job, status_frame, wait_until_set
from service.job_files import LogFile, LogSource, file_size, log_file, read_blocks, tail_offset
from service.protocol.negotiation import ByteRange, parse_range
from worker.jobs.schemas import Job

TEXT = "text/plain"
POSITION_PATTERN = r"^([A-Za-z0-9_-]{1,63}:)?\d{1,18}$"
_LOOK_S = 0.5  # a file does not say that it has grown
_MOST_BYTES = 1 << 16  # of a frame; a longer line comes in several


@dataclass(frozen=True)
class LogPosition:
    """How far a client has read, as it stands in `id:` and Last-Event-ID.

    Attributes:
        text: Which text: empty for the one that is meant without a word, ``process`` while there is no log, and the
            name of a run that the job began from scratch later.
        offset: The byte behind what was told.
    """

    text: str = ""
    offset: int = 0

    @classmethod
    def of(cls, told: str) -> LogPosition:
        """Read it back."""
        text, _, offset = told.rpartition(":")
        return cls(text, int(offset))

    def __str__(self) -> str:
        return f"{self.text}:{self.offset}" if self.text else str(self.offset)


def text_response(
    layout: Layout, job: Job, source: LogSource | None, *, tail: int | None, byte_range: str | None
) -> Response:
    """As much of a log as is wanted, up to the end that it has now.

    Args:
        layout: Where things lie.
        job: Whose log.
        source: Which one; None: the log for people, or what the process printed while there is none.
        tail: Only so many lines from the end; a range is ignored then.
        byte_range: The Range header.

    Raises:
        RangeNotSatisfiable: It begins behind the end.
    """
    path = log_file(layout, job, source).path
    size = file_size(path)
    part = parse_range(byte_range, size) if tail is None else None
    begin = 0 if tail is None else tail_offset(path, tail, size)
    whole = ByteRange(begin, size, size)
    shown = part or whole
    headers = {
        "Cache-Control": "no-store",
        "Accept-Ranges": "bytes" if tail is None else "none",
        "Content-Length": str(shown.end - shown.begin),
    }
    return StreamingResponse(
        read_blocks(path, shown.begin, shown.end),
        status_code=206 if part else 200,
        media_type=TEXT,
        headers={**headers, **({"Content-Range": part.content_range} if part else {})},
    )


@dataclass(frozen=True)
class LogReader:
    """Reads the log of a job whose files and whose run may change meanwhile.

    Attributes:
        layout: Where things lie.
        source: See `text_response`.
        first_run: The run that the job began with; None if it has none.
    """

    layout: Layout
    source: LogSource | None
    first_run: str | None

    def position_before_end(self, job: Job, tail: int) -> LogPosition:
        """The place so many lines before the end."""
        log = self._log(job)
        return LogPosition(self._text(job, log), tail_offset(log.path, tail, file_size(log.path)))

    def read_after(self, job: Job, place: LogPosition) -> tuple[str, LogPosition] | None:
        """The next lines and the place behind them; None while there are none."""
        log = self._log(job)
        text, size = self._text(job, log), file_size(log.path)
        offset = place.offset if place.text == text and place.offset <= size else 0  # else it is another file's
        data = b""
        with contextlib.suppress(FileNotFoundError):
            data = b"".join(read_blocks(log.path, offset, min(size, offset + _MOST_BYTES)))
        lines, told_bytes = _whole_lines(data, is_over=job.terminal)
        if log.source == "process" and self._log(job) != log:
            return self.read_after(job, place)  # the log came to be, with the same lines in it
        return (lines, LogPosition(text, offset + told_bytes)) if told_bytes else None

    def _log(self, job: Job) -> LogFile:
        return log_file(self.layout, job, self.source)

    def _text(self, job: Job, log: LogFile) -> str:
        if log.source == "process":
            return "process" if self.source is None else ""
        return job.run if job.run and job.run != self.first_run else ""


async def follow_log(services: Services, job: Job, reader: LogReader, place: LogPosition) -> AsyncIterator[bytes]:
    """Frames of whole lines until the job is over and everything has been told; the last is its status.

    Args:
        services: Where to ask.
        job: As it is now.
        reader: Of its log.
        place: How far the client is.
    """
    ping_s = services.settings.ping_s
    with services.changes.follow(job.id) as changed:
        yield RETRY
        changed.set()  # it may have changed before anybody listened
        told_at = time.monotonic()
        while not services.changes.closing:
            if changed.is_set():
                changed.clear()
                present = await reload_job(services, job)
                if present is None:
                    return
                job = present
            while found := await run_in_threadpool(reader.read_after, job, place):
                text, place = found
                yield frame({"text": text}, event="log", id=str(place))
                told_at = time.monotonic()
            if job.terminal:
                yield status_frame(job, job.history[-1] if job.history else None)
                return
            if time.monotonic() - told_at >= ping_s:
                yield PING
                told_at = time.monotonic()
            await asyncio.sleep(POLL_INTERVAL_S)
            await wait_until_set(changed, min(_LOOK_S, ping_s))


def _whole_lines(data: bytes, *, is_over: bool) -> tuple[str, int]:
    """As much of a block as can be told, and its length in bytes: no line is cut that fits, and never a character."""
    end = data.rfind(b"\n") + 1
    is_full = len(data) == _MOST_BYTES
    if (is_full and end == 0) or (is_over and not is_full):
        end = len(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data[:end])
    return text, end - len(decoder.getstate()[0])
