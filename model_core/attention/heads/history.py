"""How every head changed during a training, read from the `heads` events of its run.

An event holds what the probe measured at one step: ``values`` is ``{metric: [[head, ...] a layer]}``, ``types`` is
``{"l.h": [label, ...]}`` with the heads that have a label, ``probe`` identifies the texts. Only steps of one probe
compare, so a history has those of the latest event. Each step is that of the latest attempt.

Shapes: S steps, N heads of all layers.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_core.storage.events import Event, read_events
from model_core.storage.files import Layout, read_json

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Labels = Mapping[str, Sequence[Mapping[str, Any]]]  # of the heads "l.h" that have one
ProbeMetric = Literal[
    "entropy_relative", "mean_distance", "distance_variance", "diagonal", "previous", "sink", "sink_norm",
    "output_norm", "induction", "duplicate",
]  # fmt: skip

EVENT = "heads"  # type of the events
SCHEMA_VERSION = 1  # of readings that are stored without a training
MAX_HEADS = 2048  # of a model; its events would be longer than what they describe is worth

_PROBES = "probes"


@dataclass(frozen=True)
class Probed:
    """What the probe measured at one step.

    Attributes:
        step: Optimizer updates done.
        probe: Texts of the probe: ``{sha256, sequences, tokens, ...}``.
        heads: Head count of every layer.
        values: Of all heads, layer after layer, by metric, (N,); NaN where a metric has no value.
        types: Labels of the heads that have one.
    """

    step: int
    probe: Mapping[str, Any]
    heads: tuple[int, ...]
    values: Mapping[str, Array]
    types: Labels

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Probed:
        """Read the fields of an event, or of a probe that was stored without a training.

        Args:
            record: ``{step, probe, values, types}``.

        Returns:
            What it tells.

        Raises:
            ValueError: The record has another form.
        """
        try:
            values = {str(metric): list(layers) for metric, layers in record["values"].items()}
            heads = tuple(map(len, next(iter(values.values()))))
            flat = {metric: np.array([*chain.from_iterable(layers)], float) for metric, layers in values.items()}
            probe, types, step = dict(record["probe"]), dict(record["types"]), record["step"]
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ValueError(f"no reading of the probe: {error!r}") from None
        if "sha256" not in probe or type(step) is not int or any(len(v) != sum(heads) for v in flat.values()):
            raise ValueError("no reading of the probe: its parts do not fit together")
        return cls(step, probe, heads, flat, types)


@dataclass(frozen=True)
class History:
    """Readings of one probe at several steps of a run.

    Attributes:
        readings: One a step, ascending; all of the same probe and model.
    """

    readings: tuple[Probed, ...] = ()

    @property
    def steps(self) -> list[int]:
        """The steps, ascending."""
        return [reading.step for reading in self.readings]

    @cached_property
    def heads(self) -> tuple[int, ...]:
        """Head count of every layer; none without a reading."""
        return self.readings[-1].heads if self.readings else ()

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that were measured."""
        return tuple(dict.fromkeys(name for reading in self.readings for name in reading.values))

    def values(self, metric: str) -> list[Array]:
        """Return a metric layer by layer.

        Args:
            metric: Name of the metric.

        Returns:
            For each layer its heads at every step, (H, S); NaN where there is no value.
        """
        missing = np.full(sum(self.heads), np.nan)  # (N,)
        columns = [reading.values.get(metric, missing) for reading in self.readings]
        table = np.stack(columns, axis=1) if columns else np.empty((0, 0))  # (N, S)
        return np.split(table, np.cumsum(self.heads)[:-1]) if self.heads else []  # one (H, S) a layer

    def thinned(self, max_points: int) -> History:
        """Select steps at even places, with the first and the last one.

        Args:
            max_points: Most steps, at least 2.

        Returns:
            A history of these steps; this one if it is short enough.
        """
        count = len(self.readings)
        if count <= max_points:
            return self
        places = np.rint(np.linspace(0, count - 1, max_points)).astype(int)  # (max_points,)
        return replace(self, readings=tuple(self.readings[place] for place in places))


class HistoryReader:
    """Reads the history from a growing event file; each call parses only new lines. Thread-safe.

    Args:
        path: The event file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seq = path, 0
        self._readings: dict[int, Probed] = {}
        self._latest: Probed | None = None
        self._history = History()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of values in memory."""
        return sum(sum(reading.heads) * len(reading.values) for reading in self._history.readings)

    def read(self) -> History:
        """Read the new events, and return the history of all events.

        Returns:
            The history; the same object until there are new events.
        """
        with self._lock:
            new = [event for event in read_events(self._path, self._seq, types=(EVENT,)) if self._add(event)]
            if new and (latest := self._latest) is not None:
                kept = (self._readings[step] for step in sorted(self._readings))
                self._history = History(tuple(reading for reading in kept if _compare(reading, latest)))
            return self._history

    def _add(self, event: Event) -> bool:
        self._seq = event["seq"]
        try:
            reading = Probed.of(event)
        except ValueError as error:
            log.warning("event skipped path=%s seq=%d reason=%s", self._path, self._seq, error)
            return False
        self._readings[reading.step] = self._latest = reading
        return True


def probe_file(layout: Layout, run: str, sha256: str, probe_sha256: str) -> Path:
    """Return where the reading of a checkpoint without events is stored.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        sha256: Hash of the checkpoint's file, hex.
        probe_sha256: Hash of the probe, hex.

    Returns:
        The path.
    """
    return layout.attention_of(run) / _PROBES / f"{sha256[:8]}-{probe_sha256[:8]}.json"


def find_reading(layout: Layout, run: str, sha256: str) -> Probed | None:
    """Find the newest stored reading of a checkpoint.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        sha256: Hash of the checkpoint's file, hex.

    Returns:
        The reading; None if there is none of this version.
    """
    files = list(probe_file(layout, run, sha256, "*").parent.glob(f"{sha256[:8]}-*.json"))
    for file in sorted(files, key=_modified_at, reverse=True):
        if (record := read_stored(file, sha256)) is not None:
            return Probed.of(record)
    return None


def read_stored(file: Path, sha256: str) -> dict[str, Any] | None:
    """Read a stored reading of a checkpoint.

    Args:
        file: Its file, as `probe_file` names it.
        sha256: Hash of the checkpoint's file, hex.

    Returns:
        The reading, from which `Probed.of` can be made; None if the file is missing, damaged, of another version or of
        another checkpoint.
    """
    try:
        record: dict[str, Any] = read_json(file)
        if record["sha256"] != sha256 or record["schema_version"] != SCHEMA_VERSION:
            return None
        Probed.of(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("reading skipped file=%s reason=%r", file, error)
        return None
    return record


def _modified_at(file: Path) -> float:
    with contextlib.suppress(OSError):  # deleted in the meantime
        return file.stat().st_mtime
    return 0.0


def _compare(one: Probed, other: Probed) -> bool:
    return one.probe["sha256"] == other.probe["sha256"] and one.heads == other.heads
