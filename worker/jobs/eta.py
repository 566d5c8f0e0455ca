"""When a queued job will start, as a range: what runs now has told its pace, and what ran lately how long jobs take.

Workers refresh the forecast each second, so it costs those who read it nothing, and is gone when no worker is there.
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

_EXACT = 500  # places in the queue that are simulated; beyond, the line goes on as steeply as on average
_PACE = (0.8, 1.3)  # how far a running job's own estimate may be off

Range = tuple[float, float]


@dataclass(frozen=True)
class QueueForecast:
    """What the future of the queue is guessed from.

    Attributes:
        slots: Jobs that all workers together can run at once.
        remaining_s: What each running job still needs, from and to.
        typical_s: How long a job takes, from and to; None before any has run.
    """

    slots: int
    remaining_s: tuple[Range, ...]
    typical_s: Range | None

    @classmethod
    def of(cls, slots: int, took_s: Sequence[float], running: Sequence[tuple[float, float | None]]) -> Self:
        """Put together what is known.

        Args:
            slots: Of all workers together.
            took_s: How long jobs took that succeeded lately.
            running: Seconds since its start, and seconds left as it says itself, of each running job.
        """
        samples = [*took_s, *(age + left for age, left in running if left is not None)]
        typical = _spread(samples)
        return cls(slots, tuple(_remaining(age, left, typical) for age, left in running), typical)

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def start_of(self, rank: int) -> Range | None:
        """Seconds until the ready job with so many before it starts, from and to; None when nobody can know."""
        if self.slots < 1 or (self.typical_s is None and rank + len(self.remaining_s) >= self.slots):
            return None
        low, high = _starts(self)
        place = min(rank, _EXACT - 1)
        beyond, (quick, slow) = rank - place, self.typical_s or (0.0, 0.0)
        earliest, latest = low[place] + beyond * quick / self.slots, high[place] + beyond * slow / self.slots
        return round(earliest, 1), round(max(earliest, latest), 1)


@lru_cache(maxsize=4)
def read_forecast(text: str) -> QueueForecast | None:
    """Read what `QueueForecast.to_json` wrote; None of an empty text."""
    if not text:
        return None
    facts = json.loads(text)
    typical = tuple(facts["typical_s"]) if facts["typical_s"] else None
    return QueueForecast(facts["slots"], tuple(tuple(item) for item in facts["remaining_s"]), typical)


def _spread(samples: Sequence[float]) -> Range | None:
    """The middle half of what was seen."""
    if len(samples) < 2:
        return (0.5 * samples[0], 2 * samples[0]) if samples else None
    first, _, third = quantiles(samples, n=4, method="inclusive")
    return first, third


def _remaining(age_s: float, left_s: float | None, typical_s: Range | None) -> Range:
    if left_s is not None:
        return _PACE[0] * left_s, _PACE[1] * left_s
    low, high = typical_s or (0.0, 0.0)  # unknown: then nobody is told anything that depends on it
    return max(0.0, low - age_s), max(0.0, high - age_s)


@lru_cache(maxsize=4)
def _starts(forecast: QueueForecast) -> tuple[Sequence[float], Sequence[float]]:
    """Start times of the first places, at best and at worst."""
    quick, slow = forecast.typical_s or (0.0, 0.0)
    low = _in_turn(forecast.slots, [low for low, _ in forecast.remaining_s], quick)
    high = _in_turn(forecast.slots, [high for _, high in forecast.remaining_s], slow)
    return list(islice(low, _EXACT)), list(islice(high, _EXACT))


def _in_turn(slots: int, busy_s: Sequence[float], each_s: float) -> Iterator[float]:
    """Whenever a slot gets free, the next job starts and takes so long."""
    free_at = sorted(busy_s)[:slots]
    free_at = [0.0] * (slots - len(free_at)) + free_at
    while True:
        yield heapq.heapreplace(free_at, free_at[0] + each_s)
