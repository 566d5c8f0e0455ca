"""Forecast of the start of queued jobs, as a range of seconds.

It simulates the queue with the remaining time of running jobs and the duration of recent ones. Workers refresh it each
second under one Redis key, so readers compute nothing, and the key expires when no worker is alive.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from statistics import quantiles
from typing import Self

_SIMULATED = 500  # positions in the queue; the start of later ones is extrapolated
_ESTIMATE_ERROR = (0.8, 1.3)  # factors by which a running job's own estimate may be off

Range = tuple[float, float]  # least and most seconds


@dataclass(frozen=True)
class QueueForecast:
    """The numbers from which the start of a queued job is estimated.

    Attributes:
        slots: Jobs that all workers together can run at once.
        remaining_s: Range of the remaining time of each running job.
        typical_s: Range of the duration of a job; None before any has run.
    """

    slots: int
    remaining_s: tuple[Range, ...]
    typical_s: Range | None

    @classmethod
    def of(cls, slots: int, took_s: Sequence[float], running: Sequence[tuple[float, float | None]]) -> Self:
        """Build a forecast from measured times.

        Args:
            slots: Jobs that all workers together can run at once.
            took_s: Durations of jobs that succeeded recently.
            running: For each running job the seconds since its start and its own estimate of the seconds left.

        Returns:
            The forecast.
        """
        samples = [*took_s, *(age + left for age, left in running if left is not None)]
        typical = _spread(samples)
        return cls(slots, tuple(_remaining(age, left, typical) for age, left in running), typical)

    def to_json(self) -> str:
        """Serialize for Redis.

        Returns:
            JSON that `read_forecast` parses.
        """
        return json.dumps(asdict(self), separators=(",", ":"))

    def start_of(self, rank: int) -> Range | None:
        """Estimate when a ready job starts.

        Args:
            rank: Ready jobs before it.

        Returns:
            Range of seconds until its start, rounded to 0.1; None without workers, or without any known duration.
        """
        if self.slots < 1 or (self.typical_s is None and rank + len(self.remaining_s) >= self.slots):
            return None
        low, high = _starts(self)
        position = min(rank, _SIMULATED - 1)
        beyond, (quick, slow) = rank - position, self.typical_s or (0.0, 0.0)
        earliest, latest = low[position] + beyond * quick / self.slots, high[position] + beyond * slow / self.slots
        return round(earliest, 1), round(max(earliest, latest), 1)

    def end_of(self, rank: int) -> Range | None:
        """Estimate when a ready job ends.

        Args:
            rank: Ready jobs before it.

        Returns:
            Range of seconds until its end, rounded to 0.1; None as of `start_of`, or before any job has ended.
        """
        start = self.start_of(rank)
        if start is None or self.typical_s is None:
            return None
        return round(start[0] + self.typical_s[0], 1), round(start[1] + self.typical_s[1], 1)


@lru_cache(maxsize=4)
def read_forecast(text: str) -> QueueForecast | None:
    """Parse a forecast.

    Args:
        text: JSON of `QueueForecast.to_json`, or empty.

    Returns:
        The forecast; None for an empty text.
    """
    if not text:
        return None
    fields = json.loads(text)
    typical = tuple(fields["typical_s"]) if fields["typical_s"] else None
    return QueueForecast(fields["slots"], tuple(tuple(item) for item in fields["remaining_s"]), typical)


def remaining(left_s: float) -> Range:
    """Widen the estimate of a running job by its usual error.

    Args:
        left_s: Seconds left, as the job estimates them.

    Returns:
        Range of seconds, rounded to 0.1.
    """
    return round(_ESTIMATE_ERROR[0] * left_s, 1), round(_ESTIMATE_ERROR[1] * left_s, 1)


def _spread(samples: Sequence[float]) -> Range | None:
    """First and third quartile; around a single sample, half and twice its value."""
    if len(samples) < 2:
        return (0.5 * samples[0], 2 * samples[0]) if samples else None
    first, _, third = quantiles(samples, n=4, method="inclusive")
    return first, third


def _remaining(age_s: float, left_s: float | None, typical_s: Range | None) -> Range:
    if left_s is not None:
        return _ESTIMATE_ERROR[0] * left_s, _ESTIMATE_ERROR[1] * left_s
    low, high = typical_s or (0.0, 0.0)  # unknown: then `start_of` returns None where it matters
    return max(0.0, low - age_s), max(0.0, high - age_s)


@lru_cache(maxsize=4)
def _starts(forecast: QueueForecast) -> tuple[Sequence[float], Sequence[float]]:
    """Earliest and latest start of the first positions in the queue."""
    quick, slow = forecast.typical_s or (0.0, 0.0)
    low = _in_turn(forecast.slots, [low for low, _ in forecast.remaining_s], quick)
    high = _in_turn(forecast.slots, [high for _, high in forecast.remaining_s], slow)
    return list(islice(low, _SIMULATED)), list(islice(high, _SIMULATED))


def _in_turn(slots: int, busy_s: Sequence[float], each_s: float) -> Iterator[float]:
    """Start times in queue order: the next job starts when a slot is free, and holds it for `each_s`."""
    free_at = sorted(busy_s)[:slots]
    free_at = [0.0] * (slots - len(free_at)) + free_at
    while True:
        yield heapq.heapreplace(free_at, free_at[0] + each_s)
