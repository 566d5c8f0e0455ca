"""Series from events: values of the latest attempt, and downsampling that keeps the shape."""

import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.storage.events import EventWriter
from model_core.storage.series import METRICS, Metric, Series, SeriesReader


def series_of(steps, values) -> Series:
    return Series(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))


def pairs(series: Series) -> list[tuple[int, bytes]]:
    """Points with their bits, so that nan equals itself and -0.0 does not equal 0.0."""
    return [(step, struct.pack("d", value)) for step, value in zip(series.steps.tolist(), series.values, strict=True)]


def told(path: Path, *attempts: dict[int, float]) -> Path:
    """An event file of attempts that each tell the loss at some steps."""
    for number, losses in enumerate(attempts, 1):
        writer = EventWriter(path, number)
        for step, loss in losses.items():
            writer.append("step", step=step, loss=loss)
        writer.close()
    return path


curves = st.dictionaries(
    st.integers(0, 2**40), st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1e308, 1e308, 5e-324])), max_size=60
).map(lambda points: series_of(sorted(points), [points[step] for step in sorted(points)]))


@given(curves, st.integers(2, 40))
def test_fewer_points_are_points_of_the_curve_in_order_with_its_ends(curve: Series, most: int) -> None:
    kept = curve.downsample(most)
    is_finite = np.isfinite(kept.values)
    assert set(pairs(kept)) <= set(pairs(curve))
    assert (np.diff(kept.steps) > 0).all()
    assert is_finite.sum() == min(most, np.isfinite(curve.values).sum())
    assert (~is_finite).sum() == (~np.isfinite(curve.values)).sum()
    assert pairs(kept)[:1] + pairs(kept)[-1:] == pairs(curve)[:1] + pairs(curve)[-1:]


@given(curves, st.integers(60, 100))
def test_a_short_curve_stays_as_it_is(curve: Series, most: int) -> None:
    assert pairs(curve.downsample(most)) == pairs(curve)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e307])
def test_spikes_stay_where_they_are(scale: float) -> None:
    steps = np.arange(100_000)
    values = 4 / np.log(steps + 3) + np.random.default_rng(0).normal(0, 0.01, len(steps))
    values[[7, 31_415, 99_990]] = 9.0, 8.0, -3.0
    kept = series_of(steps, values * scale).downsample(300)
    assert len(kept) == 300
    assert {7, 31_415, 99_990} <= set(kept.steps.tolist())


def test_two_points_are_the_ends() -> None:
    assert series_of(range(9), range(9)).downsample(2).steps.tolist() == [0, 8]


def test_each_step_comes_from_the_latest_attempt(tmp_path: Path) -> None:
    file = told(tmp_path / "events.jsonl", {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.5}, {3: 6.0, 4: 5.0}, {4: 4.0})
    loss = SeriesReader(file).read(["loss"])["loss"]
    assert dict(zip(loss.steps.tolist(), loss.values.tolist(), strict=True)) == {1: 9.0, 2: 8.0, 3: 6.0, 4: 4.0}


def test_a_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    reader = SeriesReader(file)
    assert len(reader.read(["loss"])["loss"]) == 0
    told(file, {1: 3.0, 2: 2.0})
    assert reader.read(["loss"])["loss"].values.tolist() == [3.0, 2.0]
    told(file, {2: 1.0})
    assert reader.read(["loss"])["loss"].values.tolist() == [3.0, 1.0]
    assert len(reader) == 3


def test_only_numbers_at_a_step_are_points(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    writer = EventWriter(file, 1)
    for odd in (None, True, "high", [1.0], {"loss": 1.0}):
        writer.append("step", step=1, loss=odd)
    writer.append("step", step="2", loss=1.0)
    writer.append("step", loss=1.0)
    writer.append("validation", step=3, loss=1.0)
    writer.append("sample", step=4, texts=['"type": "step", "loss": 1.0'])
    writer.append("step", step=5, loss=2, grad_norm=float("inf"))
    writer.close()
    found = SeriesReader(file).read(METRICS)
    assert (found["loss"].steps.tolist(), found["loss"].values.tolist()) == ([5], [2.0])
    assert found["grad_norm"].values.tolist() == [float("inf")]


def test_every_metric_has_its_event() -> None:
    assert set(METRICS) == set(get_args(Metric))
