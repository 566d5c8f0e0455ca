"""Forecasts, as ranges of seconds: the start of queued jobs, and the duration of a training.

The queue is simulated with the remaining time of running jobs and the duration of recent ones. Workers refresh it each
second under one Redis key, so readers compute nothing, and the key expires when no worker is alive. A training takes as
long a token as those of the same shape took here; without any there is no estimate.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from statistics import median, quantiles
from typing import Self

from model_core.config import ExperimentConfig

_SIMULATED = 500  # positions in the queue; the start of later ones is extrapolated
_ESTIMATE_ERROR = (0.8, 1.3)  # factors by which a running job's own estimate may be off
_MOST_LONGER = 4  # start and validation of a run that is more times longer or shorter weigh otherwise

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


@dataclass(frozen=True)
class TrainingTime:
    """How long a training would take, from those of its shape that ran here.

    Attributes:
        time_s: Range of seconds on a worker, with start, validation and checkpoints.
        tokens_per_s: Tokens by that time, the median of the runs.
        runs: Number of these runs.
    """

    time_s: Range
    tokens_per_s: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[str], hosts: Collection[str], tokens: int) -> Self | None:
        """Estimate a training.

        Args:
            samples: What trainings of the shape took, as the store keeps it: JSON with host, tokens and busy_ms.
            hosts: Hosts with a worker that is alive; samples of others do not count.
            tokens: Tokens of the training.

        Returns:
            The estimate; None if nothing of that shape and about that length ran there.
        """
        per_token = [
            sample["busy_ms"] / 1000 / sample["tokens"]
            for sample in map(json.loads, samples)
            if sample["busy_ms"] > 0
            and sample["host"] in hosts
            and 1 / _MOST_LONGER <= sample["tokens"] / tokens <= _MOST_LONGER
        ]
        if not per_token:
            return None
        low, high = _ESTIMATE_ERROR if len(per_token) == 1 else (1.0, 1.0)
        time_s = round(low * min(per_token) * tokens, 1), round(high * max(per_token) * tokens, 1)
        return cls(time_s, round(1 / median(per_token), 1), len(per_token))


def shape_of(config: ExperimentConfig, processes: int, gpus: int | None) -> str:
    """Hash what decides how long a training takes for each token.

    Args:
        config: The training.
        processes: Number of its processes.
        gpus: GPUs that it requests; None: one, if the worker has any.

    Returns:
        A hash, equal for trainings with equal models, batches, processes, devices and types of numbers.
    """
    model = config.model.model_dump(mode="json", exclude={"n_head", "n_head_list"})
    device = config.device.model_dump(mode="json", exclude={"seed"})
    batch = (config.training.batch_size, config.training.sequence_length)
    facts = [model, config.model.heads, batch, device, processes, gpus]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


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
