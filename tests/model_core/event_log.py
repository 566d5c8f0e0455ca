"""The events of a run, as tests of the program read them."""

from pathlib import Path

from model_core.storage.events import Event, read_events, series


def events_of(run: Path, *types: str) -> list[Event]:
    """Return the events of some types, in the order of their file."""
    return [event for event in read_events(run / "events.jsonl") if event["type"] in types]


def series_of(run: Path, kind: str = "step", field: str = "loss") -> dict[int, float]:
    """Return a series by step: the training loss, unless another is named."""
    return series(read_events(run / "events.jsonl"), kind, field)
