"""Counters of an engine: what it has done, what it is doing, and how fast."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_RECENT = 256  # requests or steps behind a median
_SHARE = 0.05  # of the newest step in the measured rate


@dataclass(frozen=True)
class RequestCounts:
    """The requests of an engine, each of which is either open or has ended in one way.

    Attributes:
        submitted: Requests accepted so far, for text and for scores alike.
        open_requests: Of these, those that run or wait.
        finished: Ended with their output.
        cancelled: Ended by their client.
        failed: Ended with an error, such as a deadline or the end of the engine.
        open_tokens: Most tokens that the open requests will still read and generate.
    """

    submitted: int
    open_requests: int
    finished: int
    cancelled: int
    failed: int
    open_tokens: int


@dataclass(frozen=True)
class EngineStats(RequestCounts):
    """A snapshot.

    Attributes:
        prompt_tokens: Tokens of prompts read.
        completion_tokens: Tokens generated.
        cached_tokens: Tokens of prompts found in the prefix cache.
        scored_tokens: Tokens read for scores.
        rows: Rows of the cache in use.
        max_rows: Most rows in use at once.
        waiting: Continuations and scored sequences that have no row yet.
        tokens_per_s: Tokens read and generated in a second of work, of late; 0 before the first.
        first_token_s: Median time from submission to first token of the last 256 requests; None before the first.
        gap_s: Median time between two tokens of a row in the last 256 steps; None before the first.
        longest_gap_s: Longest of these.
        cache_bytes: Memory of the KV cache.
        prefix_bytes: Memory of the prefix cache.
        prefix_hits: Chunks of 64 tokens found in it.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    scored_tokens: int
    rows: int
    max_rows: int
    waiting: int
    tokens_per_s: float
    first_token_s: float | None
    gap_s: float | None
    longest_gap_s: float | None
    cache_bytes: int
    prefix_bytes: int
    prefix_hits: int


class Meter:
    """Counts what a scheduler does. Written by one thread, read by any.

    Attributes:
        prompt_tokens: See `EngineStats`.
        completion_tokens: See `EngineStats`.
        cached_tokens: See `EngineStats`.
        scored_tokens: See `EngineStats`.
        tokens_per_s: See `EngineStats`.
    """

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.scored_tokens = 0
        self.tokens_per_s = 0.0
        self._first_token_s: deque[float] = deque(maxlen=_RECENT)
        self._gap_s: deque[float] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()  # a deque must not change while another thread copies it

    def add_first_token(self, seconds: float) -> None:
        """Record the time from a request to its first token.

        Args:
            seconds: The time.
        """
        with self._lock:
            self._first_token_s.append(seconds)

    def add_gap(self, seconds: float) -> None:
        """Record the time between two tokens of a row.

        Args:
            seconds: The time.
        """
        with self._lock:
            self._gap_s.append(seconds)

    def add_work(self, tokens: int, seconds: float) -> None:
        """Update the rate.

        Args:
            tokens: Tokens that a step read and generated.
            seconds: Time of the step.
        """
        if tokens:
            rate = tokens / max(seconds, 1e-6)
            self.tokens_per_s += (rate - self.tokens_per_s) * (_SHARE if self.tokens_per_s else 1.0)

    def recent(self) -> tuple[Sequence[float], Sequence[float]]:
        """Copy the times of late.

        Returns:
            Times to the first token, and gaps, in seconds.
        """
        with self._lock:
            return tuple(self._first_token_s), tuple(self._gap_s)


def median(values: Sequence[float]) -> float | None:
    """Compute a median.

    Args:
        values: Numbers.

    Returns:
        Their median; None for no numbers.
    """
    return statistics.median(values) if values else None
