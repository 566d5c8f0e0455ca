"""Forecast of when queued jobs start."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.eta import QueueForecast, read_forecast


def test_one_slot_works_through_the_line():
    forecast = QueueForecast.of(1, [100.0, 100.0, 100.0], [(50.0, 10.0)])
    low, high = forecast.start_of(2)
    assert low == pytest.approx(8 + 2 * 90)  # quartiles of 100, 100, 100 and the running 60
    assert high == pytest.approx(13 + 2 * 100)


def test_free_slot_means_now():
    assert QueueForecast.of(2, [], [(5.0, 60.0)]).start_of(0) == (0.0, 0.0)


def test_nobody_knows_without_a_worker_or_any_experience():
    assert QueueForecast.of(0, [10.0], []).start_of(0) is None
    assert QueueForecast.of(1, [], [(3.0, None)]).start_of(0) is None


@given(
    st.integers(1, 8),
    st.lists(st.floats(0.1, 1e5), max_size=20),
    st.lists(st.tuples(st.floats(0, 1e5), st.none() | st.floats(0, 1e5)), max_size=8),
    st.integers(0, 2000),
)
def test_later_positions_start_later_and_ranges_are_in_order(slots, took, running, rank):
    forecast = read_forecast(QueueForecast.of(slots, took, running).to_json())
    here, behind = forecast.start_of(rank), forecast.start_of(rank + 1)
    if here and behind:
        assert 0 <= here[0] <= here[1]
        assert behind[0] >= here[0] - 0.11
        assert behind[1] >= here[1] - 0.11


def test_it_travels_as_json():
    forecast = QueueForecast.of(2, [10.0, 20.0], [(1.0, 2.0)])
    assert json.loads(forecast.to_json())["slots"] == 2
    assert read_forecast(forecast.to_json()) == forecast
    assert read_forecast("") is None
