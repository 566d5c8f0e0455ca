"""events.jsonl: numbered, append-only, with exact floats."""

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.storage.events import EventReader, EventWriter, finite, last_event, read_events, series


def test_a_torn_line_is_cut_and_the_numbers_go_on(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    first = EventWriter(file, 1)
    first.append("step", step=1, loss=2.0)
    first.append("step", step=2, loss=1.0)
    first.close()
    with file.open("ab") as torn:
        torn.write(b'{"seq": 3, "ti')
    second = EventWriter(file, 2)
    second.append("step", step=2, loss=1.5)
    second.close()
    events = list(read_events(file))
    assert [(e["seq"], e["attempt"]) for e in events] == [(1, 1), (2, 1), (3, 2)]
    assert series(events, "step", "loss") == {1: 2.0, 2: 1.5}
    assert [e["seq"] for e in read_events(file, after=2)] == [3]


def test_a_reader_sees_whole_lines_alone(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    reader = EventReader(file)
    assert reader.read_new() == []
    file.write_bytes(b'{"seq": 1}\n{"seq":')
    assert reader.read_new() == [{"seq": 1}]
    with file.open("ab") as more:
        more.write(b" 2}\n")
    assert reader.read_new() == [{"seq": 2}]


def test_the_last_event_is_found_behind_a_long_line(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    writer = EventWriter(file, 1)
    for _ in range(3):
        writer.append("sample", texts=["x" * 200_000])
    writer.close()
    assert last_event(file)["seq"] == 3


@given(st.floats())
def test_floats_read_back_bit_for_bit(value: float) -> None:
    back = json.loads(json.dumps(finite({"x": value})))["x"]
    if math.isfinite(value):
        assert struct.pack("d", back) == struct.pack("d", value)
    else:
        assert back == ("nan" if math.isnan(value) else "inf" if value > 0 else "-inf")


def test_a_line_that_is_no_event_is_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"seq": 1}\n{"seq": 2, "lo\x00\xff\n[[5\n{"seq": 3}\n7\n{"seq": 4}\n')
    assert [event["seq"] for event in EventReader(file).read_new()] == [1, 3, 4]
    assert [event["seq"] for event in read_events(file)] == [1, 3, 4]
    assert "offset=11" in caplog.text


def test_only_some_types_are_read(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    writer = EventWriter(file, 1)
    writer.append("step", step=1)
    writer.append("sample", step=1, texts=['{"type": "step"}'])
    writer.append("validation", step=1)
    writer.close()
    assert [event["type"] for event in read_events(file, types=("step", "validation"))] == ["step", "validation"]


def test_reading_begins_after_any_number_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    writer = EventWriter(file, 1)
    for number in range(2000):
        writer.append("sample", texts=["x" * (40_000 if number % 500 == 7 else 300)])
    writer.close()
    with file.open("ab") as torn:
        torn.write(b'{"seq": 2001')
    for after in (0, 1, 7, 8, 507, 508, 1000, 1999, 2000, 5000):
        assert [event["seq"] for event in read_events(file, after)] == list(range(after + 1, 2001))
