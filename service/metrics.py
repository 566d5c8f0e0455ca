"""Metrics of a job by step, read from its events and downsampled for plotting, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from starlette.responses import Response

from model_core.budget import compute_budget
from model_core.config import misfit
from model_core.errors import ModelCoreError
from model_core.storage.events import finite
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.storage.series import METRICS, Metric, Series, SeriesReader
from service.job_files import events_path
from service.protocol.parsing import JSON, QueryModel
from service.reader_cache import ReaderCache
from service.schemas import View
from worker.jobs.schemas import Job, Number

log = logging.getLogger(__name__)

CSV = "text/csv"
MEDIA_TYPES: Mapping[str, str] = {"json": JSON, "csv": CSV}
_MAX_VALUES = 8_000_000  # kept in memory, of 16 bytes each
_MAX_FILES = 100
_SPEED: Metric = "tokens_per_s"


def _split(value: Any) -> Any:
    """Split a parameter at its commas; FastAPI reads a parameter of several values as a list of texts."""
    texts = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(",".join(texts).split(","))) if isinstance(texts, list) else value


Names = Annotated[tuple[Metric, ...], Field(min_length=1)]


class MetricsQuery(QueryModel):
    """Which curves, and how many points of each."""

    name: Annotated[Names | None, BeforeValidator(_split)] = Field(
        default=None,
        description="comma-separated names; default: all that the job has reported",
        json_schema_extra={"explode": False, "example": ["loss", "val_loss"]},
    )
    max_points: int = Field(
        default=1000,
        ge=2,
        le=100_000,
        description="most finite points of a curve; which are left out, its shape shows least",
    )
    from_: int | None = Field(default=None, alias="from", ge=0, lt=2**62, description="first step; default: all")
    to: int | None = Field(default=None, ge=0, lt=2**62, description="last step; default: all")
    format: Literal["json", "csv"] | None = Field(default=None, description="else what Accept prefers")

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        if self.from_ is not None and self.to is not None and self.from_ > self.to:
            raise misfit("to", f"must be at least from, {self.from_}, got {self.to}", self.to, (self.from_,))
        return self


class CurveView(View):
    """One metric: a value at each of some steps."""

    steps: list[int]
    values: list[Number]
    points_total: int = Field(description="how many steps of the range have a value, those left out included")


class AxesView(View):
    """What turns steps into other axes."""

    tokens_per_step: int | None = Field(description="null where the run has no configuration that can be read")
    flops_per_token: int | None = Field(description="forward and backward")
    seconds: dict[str, list[float]] = Field(
        description="for each series the time of its steps, in seconds of training steps since the first, without "
        "validation and pauses; a series without timed steps is left out"
    )


class MetricsView(View):
    """A job's curves."""

    object: Literal["metrics"] = "metrics"
    job: str
    run: str | None
    series: dict[str, CurveView]
    x: AxesView


class SeriesCache(ReaderCache[SeriesReader]):
    """Metrics of recently read event files, so that reading again costs only the new events.

    Args:
        max_values: Number of values to keep.
    """

    def __init__(self, *, max_values: int = _MAX_VALUES) -> None:
        super().__init__(SeriesReader, max_values=max_values)

    def read(self, layout: Layout, job: Job, names: Collection[Metric] | None) -> dict[Metric, Series]:
        """Read metrics of a job.

        Args:
            layout: Paths of the data root.
            job: The job.
            names: Metrics to read; None reads all that have a value.

        Returns:
            Series by metric.
        """
        series = self._read(events_path(layout, job), METRICS if names is None else names)
        return {name: points for name, points in series.items() if len(points) or names is not None}

    def read_run(self, run: Run, names: Collection[Metric]) -> dict[Metric, Series]:
        """Read metrics of a run, with or without a job.

        Args:
            run: The run.
            names: Metrics to read.

        Returns:
            Series by metric; one without points where the run has none.
        """
        return self._read(run.events, names)

    def _read(self, path: Path, names: Collection[Metric]) -> dict[Metric, Series]:
        series = self.reader(path).read(names)
        self.evict()
        return series


def render(cache: SeriesCache, layout: Layout, job: Job, wanted: MetricsQuery, media_type: str) -> Response:
    """Build the response with the metrics of a job.

    Args:
        cache: Reads the metrics.
        layout: Paths of the data root.
        job: The job.
        wanted: Metrics and number of points.
        media_type: Media type of JSON or CSV.

    Returns:
        The response.
    """
    series = {
        name: points.between(wanted.from_, wanted.to) for name, points in cache.read(layout, job, wanted.name).items()
    }
    shown = {name: points.downsample(wanted.max_points) for name, points in series.items()}
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if media_type == CSV:
        named = {"Content-Disposition": f'attachment; filename="{job.run or job.id}-metrics.csv"'}
        return Response(_csv(shown), media_type=CSV, headers=headers | named)
    found = {
        name: {"steps": points.steps.tolist(), "values": _values(points), "points_total": len(series[name])}
        for name, points in shown.items()
    }
    axes = _axes(cache.read(layout, job, (_SPEED,))[_SPEED], layout, job, shown)
    body = {"object": "metrics", "job": job.id, "run": job.run, "series": found, "x": axes}
    return Response(json.dumps(body, allow_nan=False), media_type=JSON, headers=headers)


def elapsed_at(steps: NDArray[np.int64], speed: Series, tokens_per_step: int) -> NDArray[np.float64] | None:
    """Compute when steps were done, in seconds of training steps, without validation and pauses.

    Args:
        steps: The steps, (P,).
        speed: Tokens per second by step.
        tokens_per_step: Tokens of one optimizer step.

    Returns:
        Seconds, (P,), to milliseconds; None where no step was timed.
    """
    known = np.isfinite(speed.values) & (speed.values > 0)
    timed, elapsed = speed.steps[known], np.cumsum(tokens_per_step / speed.values[known])  # (S,), (S,)
    if not len(timed):
        return None
    done = np.searchsorted(timed, steps, side="right")  # (P,)
    return np.concatenate([[0.0], elapsed])[done].round(3)


def _axes(speed: Series, layout: Layout, job: Job, shown: Mapping[Metric, Series]) -> dict[str, Any]:
    tokens, flops = _step_costs(layout, job)
    places = {name: elapsed_at(points.steps, speed, tokens) for name, points in shown.items() if tokens is not None}
    seconds = {name: place.tolist() for name, place in places.items() if place is not None}
    return {"tokens_per_step": tokens, "flops_per_token": flops, "seconds": seconds}


def _step_costs(layout: Layout, job: Job) -> tuple[int | None, int | None]:
    """Tokens of a step and FLOPs of a token; None for a job without a run, or whose configuration is not readable."""
    if job.run is None:
        return None, None
    path = layout.run(job.run)
    try:
        return _costs_of(path, (path / "config.yaml").stat().st_mtime_ns)
    except (OSError, ModelCoreError) as error:
        log.info("metrics without axes job_id=%s reason=%s", job.id, error)
        return None, None


@lru_cache(_MAX_FILES)
def _costs_of(path: Path, _written_ns: int) -> tuple[int, int]:  # a run may be deleted and made anew
    config = Run.open(path).config()
    return config.training.total_batch_size, compute_budget(config).flops_per_token


def _values(points: Series) -> list[Number]:
    values: list[Number] = finite(points.values.tolist())
    return values


def _csv(series: Mapping[Metric, Series]) -> str:
    """RFC 4180: one row for each step that any series has; floats are written so that they read back exactly."""
    columns = [dict(zip(points.steps.tolist(), _values(points), strict=True)) for points in series.values()]
    steps = np.unique(np.concatenate([points.steps for points in series.values()])) if series else np.array([])
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["step", *series])
    writer.writerows([step, *(column.get(step) for column in columns)] for step in steps.tolist())
    return text.getvalue()
