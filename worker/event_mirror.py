"""Copies what a child writes on disk to Redis, where clients look, and brings back what they wish.

The files are the truth: when Redis is away they wait, and are copied when it is back. A restarted Redis may have lost
its last second, so what it was told last is told again; the store leaves out what it has.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_core.storage.events import Event, EventReader
from model_core.storage.files import Layout, read_json
from model_core.storage.run import Run
from worker.jobs.errors import QueueUnavailable
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import Claim, Progress
from worker.jobs.serialization import progressed
from worker.jobs.worker_store import WorkerStore

log = logging.getLogger(__name__)

_BATCH = 500  # events of one call
_TOLD_AGAIN = 500  # events, after Redis was away
_EVERY_S, _QUIET_EVERY_S = 0.2, 1.0  # between calls: with news, without


class Mirror:
    """One job's events and outcome.

    Attributes:
        desired: What Redis said last: ``run``, ``pause``, ``cancel`` or ``fenced``.
        heard_at: Monotonic time of the last sign of life of the child.
    """

    def __init__(self, store: WorkerStore, claim: Claim, layout: Layout, tokens_per_step: int) -> None:
        assert layout.jobs is not None
        self._store, self._claim, self._tokens_per_step = store, claim, tokens_per_step
        self._job_directory = layout.jobs / claim.id
        self._run = Run(layout.run(claim.run)) if kind_of(claim.kind).makes_run and claim.run else None
        self._reader: EventReader | None = None
        self._pending: list[Event] = []
        self._told: deque[Event] = deque(maxlen=_TOLD_AGAIN)
        self._told_before: int | None = None  # events up to here are those of earlier attempts
        self._progress = Progress.beginning(claim.kind)
        self._next_call = 0.0
        self.desired, self.heard_at = "run", time.monotonic()

    def _directory(self) -> Path | None:
        """Where the child's records are; None while the run is not this job's."""
        if self._run is None:
            return self._job_directory
        owned = self._run.attempt()["job_id"] == self._claim.id
        return self._run.path if owned else None

    def pump(self) -> None:
        """Read what is new and pass it on, if it is time; what Redis or the disk refuse now is tried again."""
        if time.monotonic() < self._next_call:
            return
        try:
            self._read()
            self._send()
        except (QueueUnavailable, OSError, ValueError) as error:
            log.warning("events wait job_id=%s count=%d reason=%s", self._claim.id, len(self._pending), error)
            self._next_call = time.monotonic() + _QUIET_EVERY_S
            self._take_back()

    def drain(self) -> None:
        """Pass on everything that there is.

        Raises:
            QueueUnavailable: Redis does not answer; another call goes on where this one stopped.
        """
        try:
            self._read()
            self._send()
            while self._pending and self.desired != "fenced":
                self._send()
        except QueueUnavailable:
            self._take_back()
            raise

    def outcome(self) -> dict[str, Any] | None:
        """What the child wrote about its end, if this attempt of it wrote anything."""
        for directory in dict.fromkeys((self._directory(), self._job_directory)):
            file = directory / "outcome.json" if directory else None
            if file is not None and file.exists():
                record: dict[str, Any] = read_json(file)
                if record["attempt"] == self._claim.attempt:
                    return record
        return None

    def _read(self) -> None:
        if self._reader is None:
            directory = self._directory()
            if directory is None:
                return
            self._reader = EventReader(directory / "events.jsonl")
        news = self._reader.read_new()
        if news:
            self.heard_at = time.monotonic()
            self._pending += [event for event in news if self._can_be_told(event)]

    def _send(self) -> None:
        if self._told_before is None:
            self._leave_out_what_was_told()
        batch, progress = self._pending[:_BATCH], self._after(self._pending[:_BATCH])
        self.desired = self._store.mirror(self._claim, batch, progress)
        self._pending, self._progress = self._pending[_BATCH:], progress
        self._told.extend(batch)
        self._next_call = time.monotonic() + (_EVERY_S if self._pending or batch else _QUIET_EVERY_S)

    def _leave_out_what_was_told(self) -> None:
        """A run of many attempts has a long file; what lies before the tail in Redis has been there."""
        tail = self._store.events(self._claim.id, limit=1)
        self._told_before = tail[0]["seq"] if tail else 0
        self._progress = self._after([event for event in self._pending if event["seq"] < self._told_before])
        self._pending = [event for event in self._pending if event["seq"] >= self._told_before]

    def _take_back(self) -> None:
        self._pending = [*self._told, *self._pending]
        self._told.clear()

    def _after(self, events: Sequence[Event]) -> Progress:
        """The progress that events lead to."""
        progress = self._progress
        for event in events:
            try:
                progress = progressed(progress, event, self._tokens_per_step)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("event not understood job_id=%s seq=%s reason=%r", self._claim.id, event["seq"], error)
        return progress

    def _can_be_told(self, event: Event) -> bool:
        """Whether an event has what the store needs; an odd one must not keep the others back."""
        try:
            json.dumps(event, ensure_ascii=False).encode()
            step = event["step"] if event["type"] == "resumed" else event.get("step", 0)
            good = isinstance(step, int) and (event["type"] != "resumed" or "file" in event)
        except (KeyError, ValueError):
            good = False
        if not good:
            log.warning("event passed over job_id=%s seq=%s", self._claim.id, event["seq"])
        return good
