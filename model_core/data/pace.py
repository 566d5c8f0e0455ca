"""How a preparation goes on, told now and then: documents, megabytes a second, seconds to go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from model_core.data.sources.source import Source

Emit = Callable[..., Any]

_EVERY_S = 1.0


class Pace:
    """Turns what was done into ``progress`` events, at most one a second."""

    def __init__(self, emit: Emit, source: Source, unit: str, *, done: int = 0, text_bytes: int = 0) -> None:
        """Begin to measure.

        Args:
            emit: Told ``progress``.
            source: Whose documents are counted.
            unit: What is counted.
            done: How many were done before.
            text_bytes: What text those had.
        """
        self._emit, self._source, self._unit = emit, source, unit
        self._done, self._text_bytes = done, text_bytes
        self._began, self._next = time.monotonic(), 0.0

    def tell(self, done: int, text_bytes: int, *, at_once: bool = False) -> None:
        """Emit the event, if it is time.

        Args:
            done: How many are done, with those before.
            text_bytes: What text all these have.
            at_once: Do not wait for the time.
        """
        present = time.monotonic()
        if not at_once and present < self._next:
            return
        self._next = present + _EVERY_S
        elapsed = max(present - self._began, 1e-9)
        bytes_per_s = (text_bytes - self._text_bytes) / elapsed
        eta_s = self._eta_s(done, text_bytes, (done - self._done) / elapsed, bytes_per_s)
        facts = {"mb_per_s": round(bytes_per_s / 1e6, 2), "eta_s": eta_s}
        self._emit("progress", done=done, of=self._source.count, unit=self._unit, **facts)

    def _eta_s(self, done: int, text_bytes: int, documents_per_s: float, bytes_per_s: float) -> float | None:
        """Seconds to go, by documents where their number is known, else by text; None where neither is."""
        count, total = self._source.count, self._source.text_bytes
        if count is not None:
            left, speed = float(count - done), documents_per_s
        else:
            left, speed = float(total - text_bytes) if total is not None else 0.0, bytes_per_s
        return round(max(0.0, left) / speed, 1) if speed and (count is not None or total is not None) else None
