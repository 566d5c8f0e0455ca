"""Server-sent events of all jobs: one reader of Redis for each process, shared by every open stream.

`LiveEvents` reads what changed, at most four times a second, and keeps the latest changes of status, the latest
progress of each job and the queue. A stream keeps only how far it has sent: one that is slow skips progress and queues,
and begins again with a snapshot once the changes of status that it lacks are no longer kept. A slow client costs no
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from service.async_store import AsyncStore
from service.change_listener import ChangeListener
from service.protocol.server_sent_events import PING, RETRY, frame, wait_until_set
from worker.jobs.errors import QueueUnavailable
from worker.jobs.job_changes import JobChanges, Position, ReadyQueue, StatusChange, changes_after, position_of
from worker.jobs.schemas import Job, Progress
from worker.jobs.states import HOLDING, TERMINAL

log = logging.getLogger(__name__)

LiveType = Literal["status", "progress", "queue"]

_INTERVAL_S, _IDLE_INTERVAL_S = 0.25, 1.0  # between reads: with changes, and without
_PROGRESS_INTERVAL_S = 1.0  # of one job on one stream
_QUEUE_INTERVAL_S, _FORECAST_INTERVAL_S = 1.0, 5.0  # between queues; the estimates change each second
_MOST_TRANSITIONS = 1000
_ENDED_KEPT_S = 10.0  # the last progress of a job that does not run any more
_EMPTY = ReadyQueue(0, 0, (), "")
_ENTRY_ID = re.compile(r"\d{1,15}-\d{1,15}")


@dataclass(frozen=True)
class Interest:
    """What a client wants to be told.

    Attributes:
        types: Types of events.
        jobs: Ids of the jobs; None for all.
    """

    types: frozenset[LiveType]
    jobs: frozenset[str] | None = None

    def has(self, kind: LiveType, job_id: str) -> bool:
        """Check whether an event of a job is wanted.

        Args:
            kind: Type of the event.
            job_id: Id of the job.

        Returns:
            Whether the client wants it.
        """
        return kind in self.types and (self.jobs is None or job_id in self.jobs)


class _Transition(NamedTuple):
    position: Position
    job: str
    frame: bytes


class _Latest(NamedTuple):
    version: int
    progress: Progress
    frame: bytes
    ended_at: float | None  # monotonic time


@dataclass
class _Board:
    """What streams share: the state since the first read, or since Redis lost the position."""

    last: str | None = None  # id of the newest entry that was read
    begins_at: Position = (0, 0)  # all later transitions are kept
    transitions: deque[_Transition] = field(default_factory=deque)
    progress: dict[str, _Latest] = field(default_factory=dict)
    queue: ReadyQueue = _EMPTY
    queue_at: float = 0.0  # monotonic time
    queue_version: int = 0
    queue_facts: Mapping[str, Any] = field(default_factory=dict)
    queue_frame: bytes = b""


@dataclass
class _Sent:
    """How far a stream has sent."""

    generation: int | None
    position: Position
    progress: dict[str, tuple[int, float]] = field(default_factory=dict)  # by job: version, monotonic time
    queue: int = 0  # version


class LiveEvents:
    """Follows all jobs while a stream is open.

    Args:
        store: Runs the command that reads the changes.
        changes: Reports that something has changed, and the end of the process.
        ping_s: Silence after which a stream sends a comment.
    """

    def __init__(self, store: AsyncStore, changes: ChangeListener, ping_s: float) -> None:
        self._store, self._changes, self._ping_s = store, changes, ping_s
        self._streams: set[asyncio.Event] = set()
        self._has_streams = asyncio.Event()
        self._generation, self._version = 0, 0
        self._board = _Board()

    async def run(self) -> None:
        """Read changes while there are streams, until cancelled."""
        while True:
            await self._has_streams.wait()
            with self._changes.follow(None) as changed:
                while self._streams and not self._changes.closing:
                    changed.clear()
                    await self._read()
                    await asyncio.sleep(_INTERVAL_S)
                    await wait_until_set(changed, _IDLE_INTERVAL_S - _INTERVAL_S)
            self._wake_streams()
            self._has_streams.clear()
            self._board = _Board()

    async def look(self, wanted: Interest, after: str | None) -> JobChanges:
        """Read the snapshot with which a stream begins.

        Args:
            wanted: What the client wants.
            after: Id of the last event that it has; None, or an id that is gone, leaves out the changes since then.

        Returns:
            Changes of status since that event, and the present jobs.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        known = after if after is not None and _ENTRY_ID.fullmatch(after) else None
        only = None if wanted.jobs is None else sorted(wanted.jobs)
        return await self._store.run(changes_after(known, with_snapshot=True, only=only))

    async def stream(self, wanted: Interest, first: JobChanges) -> AsyncIterator[bytes]:
        """Follow jobs until the process ends.

        Args:
            wanted: What the client wants.
            first: What `look` returned.

        Yields:
            Formatted events, and comments during silence.
        """
        sent = _Sent(None, position_of(first.last))
        with self._open_stream() as woken:
            yield RETRY + self._snapshot(wanted, sent, first)
            silent_since = time.monotonic()
            while not self._changes.closing:
                woken.clear()
                data, due_s = await self._next(wanted, sent)
                if not data and time.monotonic() - silent_since >= self._ping_s:
                    data = PING
                if data:
                    yield data
                    silent_since = time.monotonic()
                silence_s = max(0.0, silent_since + self._ping_s - time.monotonic())
                await wait_until_set(woken, silence_s if due_s is None else min(due_s, silence_s))

    # --- what a stream has not sent ----------------------------------------------------------------------------------

    async def _next(self, wanted: Interest, sent: _Sent) -> tuple[bytes, float | None]:
        """Events that a stream has not sent, and after how many seconds more of them may be sent."""
        if self._has_missed(sent):
            try:
                found = await self.look(wanted, "{}-{}".format(*sent.position))
            except QueueUnavailable:
                return b"", _IDLE_INTERVAL_S
            return self._snapshot(wanted, sent, found), None
        statuses = self._status_frames(wanted, sent)
        progress, due_s = self._progress_frames(wanted, sent)
        return b"".join([*statuses, *progress, *self._queue_frames(wanted, sent)]), due_s

    def _has_missed(self, sent: _Sent) -> bool:
        """Whether changes of status that were not sent are not kept."""
        if self._board.last is None:  # nothing was read yet
            return False
        is_continued = sent.generation in {None, self._generation} and sent.position >= self._board.begins_at
        if is_continued:
            sent.generation = self._generation
        return not is_continued

    def _snapshot(self, wanted: Interest, sent: _Sent, found: JobChanges) -> bytes:
        """The changes of status since the client's last event, then the present state."""
        now, queue = time.monotonic(), _queue_facts(found.queue)
        sent.generation, sent.position = self._generation if self._board.last else None, position_of(found.last)
        missed = [
            _status_frame(change, found.jobs[change.job])
            for change in found.transitions
            if change.job in found.jobs and wanted.has("status", change.job)
        ]
        present = [_present_frame(job, found.last) for job in found.jobs.values() if wanted.has("status", job.id)]
        active = [job for job in found.jobs.values() if job.status in HOLDING and wanted.has("progress", job.id)]
        sent.progress |= {job.id: (self._version, now) for job in active}
        sent.queue = self._version
        queues = [_queue_frame(queue, wanted)] if "queue" in wanted.types else []
        return b"".join([*missed, *present, *map(_progress_frame, active), *queues])

    def _status_frames(self, wanted: Interest, sent: _Sent) -> list[bytes]:
        found = []
        for transition in reversed(self._board.transitions):
            if transition.position <= sent.position:
                break
            if wanted.has("status", transition.job):
                found.append(transition.frame)
        if self._board.transitions:
            sent.position = max(sent.position, self._board.transitions[-1].position)
        return found[::-1]

    def _progress_frames(self, wanted: Interest, sent: _Sent) -> tuple[list[bytes], float | None]:
        now, found = time.monotonic(), []
        due_s: float | None = None
        for job_id, latest in self._board.progress.items():
            version, sent_at = sent.progress.get(job_id, (0, 0.0))
            if latest.version <= version or not wanted.has("progress", job_id):
                continue
            wait_s = sent_at + _PROGRESS_INTERVAL_S - now
            if wait_s <= 0:
                found.append(latest.frame)
                sent.progress[job_id] = (latest.version, now)
            else:
                due_s = wait_s if due_s is None else min(due_s, wait_s)
        if len(sent.progress) > 2 * len(self._board.progress) + 100:
            sent.progress = {job_id: known for job_id, known in sent.progress.items() if job_id in self._board.progress}
        return found, due_s

    def _queue_frames(self, wanted: Interest, sent: _Sent) -> list[bytes]:
        if "queue" not in wanted.types or self._board.queue_version <= sent.queue:
            return []
        sent.queue = self._board.queue_version
        return [self._board.queue_frame if wanted.jobs is None else _queue_frame(self._board.queue_facts, wanted)]

    # --- what all streams share --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read what changed, and wake the streams if it concerns any."""
        try:
            found = await self._store.run(changes_after(self._board.last))
        except QueueUnavailable as error:
            log.info("live events wait for redis reason=%s", error)
            return
        if not found.is_known:  # the first read, or Redis lost the position
            self._board = _Board()
            self._generation += 1
            self._board.begins_at = position_of(found.last)
        self._board.last = found.last
        before = self._version
        self._keep_transitions(found)
        self._keep_progress(found.jobs.values())
        self._keep_queue(found.queue)
        if self._version > before or not found.is_known:
            self._wake_streams()

    def _keep_transitions(self, found: JobChanges) -> None:
        for change in found.transitions:
            if (job := found.jobs.get(change.job)) is None:
                continue  # deleted since
            self._version += 1
            if len(self._board.transitions) == _MOST_TRANSITIONS:
                self._board.begins_at = self._board.transitions.popleft().position
            self._board.transitions.append(_Transition(position_of(change.id), job.id, _status_frame(change, job)))

    def _keep_progress(self, jobs: Iterable[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            known, is_active = self._board.progress.get(job.id), job.status in HOLDING
            if known is None and not is_active:
                continue
            ended_at = None if is_active else now
            if known is not None and known.progress == job.progress:
                self._board.progress[job.id] = known._replace(ended_at=ended_at)
                continue
            self._version += 1
            self._board.progress[job.id] = _Latest(self._version, job.progress, _progress_frame(job), ended_at)
        for job_id, latest in list(self._board.progress.items()):
            if latest.ended_at is not None and now - latest.ended_at > _ENDED_KEPT_S:
                del self._board.progress[job_id]

    def _keep_queue(self, queue: ReadyQueue) -> None:
        known, age_s = self._board.queue, time.monotonic() - self._board.queue_at
        is_same = (queue.queued, queue.running, queue.ready) == (known.queued, known.running, known.ready)
        if queue == known or age_s < (_FORECAST_INTERVAL_S if is_same else _QUEUE_INTERVAL_S):
            return
        self._version += 1
        self._board.queue, self._board.queue_at, self._board.queue_version = queue, time.monotonic(), self._version
        self._board.queue_facts = _queue_facts(queue)
        self._board.queue_frame = frame(self._board.queue_facts, event="queue")

    def _wake_streams(self) -> None:
        for woken in self._streams:
            woken.set()

    @contextlib.contextmanager
    def _open_stream(self) -> Iterator[asyncio.Event]:
        woken = asyncio.Event()
        self._streams.add(woken)
        self._has_streams.set()
        try:
            yield woken
        finally:
            self._streams.discard(woken)


def _status_frame(change: StatusChange, job: Job) -> bytes:
    is_present = change.to == job.status and change.attempt == job.attempt
    facts = {
        "job": job.id,
        "run": job.run,
        "kind": job.kind,
        "status": change.to,
        "terminal": change.to in TERMINAL,
        "attempt": change.attempt,
        "time": change.time,
        "reason": change.reason,
        "error": job.error.model_dump() if job.error and is_present else None,
        "snapshot": False,
    }
    return frame(facts, event="status", id=change.id)


def _present_frame(job: Job, last: str) -> bytes:
    """The present status; its id is the position of the snapshot, from which a client goes on."""
    newest = job.history[-1] if job.history else None
    facts = {
        "job": job.id,
        "run": job.run,
        "kind": job.kind,
        "status": job.status,
        "terminal": job.terminal,
        "attempt": job.attempt,
        "time": newest.time if newest else job.created_at,
        "reason": newest.reason if newest else None,
        "error": job.error.model_dump() if job.error else None,
        "snapshot": True,
    }
    return frame(facts, event="status", id=last)


def _progress_frame(job: Job) -> bytes:
    return frame({"job": job.id, "run": job.run, **job.progress.model_dump()}, event="progress")


def _queue_facts(queue: ReadyQueue) -> dict[str, Any]:
    data = [{"job": job_id, **place.model_dump()} for job_id, place in queue.places()]
    return {"queued": queue.queued, "running": queue.running, "data": data}


def _queue_frame(facts: Mapping[str, Any], wanted: Interest) -> bytes:
    jobs = wanted.jobs
    data = [place for place in facts["data"] if jobs is None or place["job"] in jobs]
    return frame({**facts, "data": data}, event="queue")
