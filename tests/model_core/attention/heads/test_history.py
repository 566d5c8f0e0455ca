"""A history has the steps of one probe, each from the latest attempt, and reads only what is new."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_core.attention.heads.history import History, HistoryReader
from model_core.storage.events import EventWriter

PROBE = {"sha256": "a" * 64, "sequences": 24, "tokens": 16}


def told(path: Path, step: int, value: float, *, attempt: int = 1, **changes: Any) -> None:
    """Append an event of a model with heads 2 and 1, whose head h has `value` + h."""
    fields = {
        "probe": PROBE,
        "values": {"previous": [[value, value + 1], [value + 2]], "induction": [[None, "nan"], [0.5]]},
        "types": {"1.0": [{"type": "previous", "strength": "weak"}]},
    }
    writer = EventWriter(path, attempt)
    writer.append("step", step=step, loss=1.0)
    writer.append("heads", step=step, **fields | changes)
    writer.close()


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_each_layer_has_a_row_a_head_and_a_column_a_step(events: Path) -> None:
    told(events, 0, 0.25)
    told(events, 20, 0.5)
    history = HistoryReader(events).read()
    assert (history.steps, history.heads, history.metrics) == ([0, 20], (2, 1), ("previous", "induction"))
    assert [layer.tolist() for layer in history.values("previous")] == [[[0.25, 0.5], [1.25, 1.5]], [[2.25, 2.5]]]
    first, second = history.values("induction")
    assert np.isnan(first).all()
    assert second.tolist() == [[0.5, 0.5]]
    assert history.readings[1].types == {"1.0": [{"type": "previous", "strength": "weak"}]}


def test_a_step_is_that_of_the_latest_attempt_and_only_new_lines_are_read(events: Path) -> None:
    told(events, 0, 0.0)
    told(events, 10, 1.0)
    reader = HistoryReader(events)
    before = reader.read()
    assert reader.read() is before
    told(events, 10, 2.0, attempt=2)
    assert reader.read().values("previous")[1].tolist() == [[2.0, 4.0]]
    assert len(reader) == 2 * 2 * 3


def test_steps_of_another_probe_or_another_model_do_not_compare(events: Path) -> None:
    told(events, 0, 0.0)
    told(events, 10, 0.0, values={"previous": [[0.0], [0.0]]})
    told(events, 20, 0.0, probe={**PROBE, "sha256": "b" * 64})
    reader = HistoryReader(events)
    assert reader.read().steps == [20]
    told(events, 30, 0.0)
    assert reader.read().steps == [0, 30]


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {"previous": [[0.0, 1.0], [2.0]], "sink": [[0.0]]}},
        {"values": {}},
        {"values": {"previous": [["many"]]}},
        {"values": 3},
        {"probe": None},
        {"probe": {}},
        {"types": 7},
        {"step": "first"},
    ],
    ids=lambda changes: json.dumps(changes),
)
def test_an_event_of_another_form_is_skipped(events: Path, changes: dict[str, Any]) -> None:
    told(events, 0, 0.0)
    fields = {"step": 10, "probe": PROBE, "values": {"previous": [[0.0, 1.0], [2.0]]}, "types": {}}
    writer = EventWriter(events, 1)
    writer.append("heads", **fields | changes)
    writer.close()
    assert HistoryReader(events).read().steps == [0]


@pytest.mark.parametrize(("most", "kept"), [(2, [0, 90]), (4, [0, 30, 60, 90]), (10, [*range(0, 100, 10)])])
def test_fewer_steps_are_at_even_places_with_both_ends(events: Path, most: int, kept: list[int]) -> None:
    for step in range(0, 100, 10):
        told(events, step, step)
    history = HistoryReader(events).read().thinned(most)
    assert history.steps == kept
    assert history.values("previous")[0][0].tolist() == kept


def test_without_events_there_is_an_empty_history(events: Path) -> None:
    history = HistoryReader(events).read()
    assert history == History()
    assert (history.steps, history.heads, history.metrics, history.values("previous")) == ([], (), (), [])
