"""The events of a run, and the invariants that hold whatever happened to its processes."""

import re
from itertools import groupby
from typing import Any

from model_core.storage.events import Event, series

_FULL_STATE = re.compile(r"model_(latest|\d{5,})\.pt|state\.json")


class EventLog:
    """The events of a run, in the order of its file."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def of(self, *types: str) -> list[Event]:
        """The events of some types."""
        return [event for event in self.events if event["type"] in types]

    @property
    def attempts(self) -> list[int]:
        """Attempts in the order of their events; an attempt that appears twice was interrupted by another."""
        return [attempt for attempt, _ in groupby(event["attempt"] for event in self.events)]

    @property
    def steps(self) -> list[int]:
        """The step of every `step` event, repeated steps included."""
        return [event["step"] for event in self.of("step")]

    def bits(self, type: str = "step", field: str = "loss") -> dict[int, str]:  # noqa: A002 - the name on disk
        """A series by step, each step from the latest attempt, in exact hexadecimal."""
        return {step: float(value).hex() for step, value in series(self.events, type, field).items()}

    @property
    def resumed(self) -> list[tuple[int, int]]:
        """Attempt and step of every resumption."""
        return [(event["attempt"], event["step"]) for event in self.of("resumed")]

    def check(self, steps: int) -> None:
        """Assert that attempts ran one at a time, each from the newest full state, and that no step is missing.

        Args:
            steps: How many the run takes.
        """
        assert [event["seq"] for event in self.events] == list(range(1, len(self.events) + 1))
        assert self.attempts == sorted(set(self.attempts)), "two attempts at the same time"
        for attempt in self.attempts:
            self._check_first_step(attempt)
        assert list(self.bits()) == list(range(1, steps + 1))

    def _check_first_step(self, attempt: int) -> None:
        own = EventLog([event for event in self.events if event["attempt"] == attempt])
        before = [e for e in self.of("checkpoint") if e["attempt"] < attempt and _FULL_STATE.fullmatch(e["file"])]
        newest = before[-1]["step"] if before else 0
        began = own.of("resumed")[0]["step"] if own.of("resumed") else 0
        if own.steps or began:
            # a kill may come between a state and its event, so what it began from may be newer
            assert began >= newest, f"attempt {attempt} began at {began}, and there was a state of step {newest}"
        assert own.steps == list(range(began + 1, began + 1 + len(own.steps)))

    def __repr__(self) -> str:
        events: list[Any] = [(e["seq"], e["attempt"], e["type"], e.get("step")) for e in self.events]
        return f"EventLog({events})"
