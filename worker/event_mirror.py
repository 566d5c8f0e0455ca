"""Copies the events of a job from its file to a Redis stream, and returns the action that clients requested.

The file is the truth: while Redis is away, events wait there. A restarted Redis may have lost its last second, so the
last events are sent again afterwards; the store skips those that it has.
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
_RESENT = 500  # events sent again after Redis was away
_BUSY_INTERVAL_S, _IDLE_INTERVAL_S = 0.2, 1.0  # between calls


class Mirror:
    """Events and outcome of one attempt of a job.

    Args:
        store: Receives the events.
        claim: The job and its attempt.
        layout: Directories of the data root.
        tokens_per_step: Tokens of one optimizer step, to compute tokens per second.

    Attributes:
        desired: Latest state that Redis asks for: ``run``, ``pause``, ``cancel`` or ``fenced`` (the lease is lost).
        last_event_at: Monotonic time of the last event of the child.
    """

    def __init__(self, store: WorkerStore, claim: Claim, layout: Layout, tokens_per_step: int) -> None:
        assert layout.jobs is not None
        self._store, self._claim, self._tokens_per_step = store, claim, tokens_per_step
        self._job_directory = layout.jobs / claim.id
        self._run = Run(layout.run(claim.run)) if kind_of(claim.kind).writes_in_run and claim.run else None
        self._reader: EventReader | None = None
        self._pending: list[Event] = []
        self._sent: deque[Event] = deque(maxlen=_RESENT)
        self._skip_before: int | None = None  # first seq that Redis may lack; None until Redis was read
        self._progress = Progress.beginning(claim.kind)
        self._next_call = 0.0
        self.desired, self.last_event_at = "run", time.monotonic()

    def pump(self) -> None:
        """Send new events, at most every 0.2 s. Events that Redis or the disk refuse now are sent by a later call."""
        if time.monotonic() < self._next_call:
            return
        try:
            self._read()
            self._send()
        except (QueueUnavailable, OSError, ValueError) as error:
            log.warning("events wait job_id=%s count=%d reason=%s", self._claim.id, len(self._pending), error)
            self._next_call = time.monotonic() + _IDLE_INTERVAL_S
            self._resend_last()

    def drain(self) -> None:
        """Send all remaining events.

        Raises:
            QueueUnavailable: Redis does not answer; another call continues where this one stopped.
        """
        try:
            self._read()
            self._send()
            while self._pending and self.desired != "fenced":
                self._send()
        except QueueUnavailable:
            self._resend_last()
            raise

    def outcome(self) -> dict[str, Any] | None:
        """Read the outcome that the child wrote.

        Returns:
            Content of outcome.json; None unless this attempt wrote one.
        """
        for directory in dict.fromkeys((self._directory(), self._job_directory)):
            file = directory / "outcome.json" if directory else None
            if file is not None and file.exists():
                record: dict[str, Any] = read_json(file)
                if record["attempt"] == self._claim.attempt:
                    return record
        return None

    def _directory(self) -> Path | None:
        """Directory of the events; None while the run belongs to another job."""
        if self._run is None:
            return self._job_directory
        owned = self._run.attempt()["job_id"] == self._claim.id
        return self._run.path if owned else None

    def _read(self) -> None:
        if self._reader is None:
            directory = self._directory()
            if directory is None:
                return
            self._reader = EventReader(directory / "events.jsonl")
        events = self._reader.read_new()
        if events:
            self.last_event_at = time.monotonic()
            self._pending += [event for event in events if self._is_valid(event)]

    def _send(self) -> None:
        if self._skip_before is None:
            self._skip_events_in_redis()
        batch, progress = self._pending[:_BATCH], self._after(self._pending[:_BATCH])
        self.desired = self._store.mirror(self._claim, batch, progress)
        self._pending, self._progress = self._pending[_BATCH:], progress
        self._sent.extend(batch)
        self._next_call = time.monotonic() + (_BUSY_INTERVAL_S if self._pending or batch else _IDLE_INTERVAL_S)

    def _skip_events_in_redis(self) -> None:
        """Skip the events before the last one in Redis: the file of a run with many attempts is long."""
        tail = self._store.events(self._claim.id, limit=1)
        self._skip_before = tail[0]["seq"] if tail else 0
        self._progress = self._after([event for event in self._pending if event["seq"] < self._skip_before])
        self._pending = [event for event in self._pending if event["seq"] >= self._skip_before]

    def _resend_last(self) -> None:
        self._pending = [*self._sent, *self._pending]
        self._sent.clear()

    def _after(self, events: Sequence[Event]) -> Progress:
        """The job's progress after these events."""
        progress = self._progress
        for event in events:
            try:
                progress = progressed(progress, event, self._tokens_per_step)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("event not understood job_id=%s seq=%s reason=%r", self._claim.id, event["seq"], error)
        return progress

    def _is_valid(self, event: Event) -> bool:
        """Whether an event has the fields that the store needs; a malformed one must not block the others."""
        try:
            json.dumps(event, ensure_ascii=False).encode()
            step = event["step"] if event["type"] == "resumed" else event.get("step", 0)
            valid = isinstance(step, int) and (event["type"] != "resumed" or "file" in event)
        except (KeyError, ValueError):
            valid = False
        if not valid:
            log.warning("event skipped job_id=%s seq=%s", self._claim.id, event["seq"])
        return valid
