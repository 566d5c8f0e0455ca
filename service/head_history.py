"""The history of a run's heads: read from its events, thinned, and shown as JSON, CSV or a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from pydantic_core import to_json
from starlette.responses import Response

from model_core.attention.head_metrics import METRICS
from model_core.attention.heads.history import MAX_HEADS, History, HistoryReader, ProbeMetric
from model_core.attention.pictures.head_plots import HistoryPlot, auto_scale, head_history
from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.selection import chosen_heads
from model_core.config import ExperimentConfig
from model_core.errors import FieldProblem, InvalidParameters, ResultNotFound
from model_core.schemas import CheckpointRef, JsonNumber
from model_core.storage.run import Run
from service.body_cache import BodyCache
from service.head_results import CSV, PNG
from service.protocol.parsing import QueryModel
from service.reader_cache import ReaderCache
from service.schemas import View

_MAX_VALUES = 8_000_000  # kept in memory, of 8 bytes each
_MAX_BYTES = 64 << 20  # of replies that are kept

Array = NDArray[np.float64]
Heads = Mapping[int, Sequence[int]]  # the chosen heads of each layer
BodyKey = tuple[object, ...]


def _split(value: Any) -> Any:
    """Split a parameter at its commas; FastAPI reads a parameter of several values as a list of texts."""
    texts = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(",".join(texts).split(","))) if isinstance(texts, list) else value


Index = Annotated[int, Field(ge=0, le=65_536), JsonNumber]
Indices = Annotated[tuple[Index, ...], BeforeValidator(_split)]
Metrics = Annotated[tuple[ProbeMetric, ...], BeforeValidator(_split)]


class HistoryQuery(QueryModel):
    """Which metrics of which heads, and how they are shown."""

    metric: Metrics | None = Field(
        default=None,
        description="comma-separated names; default: all, and previous in a picture, which shows one",
        json_schema_extra={"explode": False, "example": ["previous", "sink"], "minItems": 1},
    )
    layer: Indices | None = Field(
        default=None,
        description="comma-separated layers; default: all",
        json_schema_extra={"explode": False, "example": [0, 1], "minItems": 1},
    )
    head: Indices | None = Field(
        default=None,
        description="comma-separated heads, which each chosen layer has; default: all",
        json_schema_extra={"explode": False, "example": [0], "minItems": 1},
    )
    checkpoint: CheckpointRef | None = Field(
        default=None,
        description="only this checkpoint, probed now if the run has no event for it; default: every step of the run",
    )
    max_points: int = Field(default=1000, ge=2, le=100_000, description="most steps, at even places")
    scale: str = Field(
        default="auto",
        max_length=100,
        description="both ends of the colors: `auto`, from 0 to the largest value of all layers, or two numbers",
        json_schema_extra={"example": "0,1"},
    )
    format: Literal["json", "csv", "png"] | None = Field(default=None, description="else what Accept prefers")


class ProbeView(View):
    """The texts on which the heads were measured; histories compare where `sha256` is equal."""

    sha256: str
    sequences: int = Field(description="natural texts; as many sequences of random tokens, and controls")
    tokens: int = Field(description="of each text")
    repeated: int | None = Field(
        default=None, description="tokens of the half that is repeated; null: too few are known"
    )
    reason: str | None = Field(default=None, description="why induction and duplicate are null")


class HistoryMetricView(View):
    """One metric."""

    chance: float | None = Field(description="value of even attention")
    bounds: list[float | None] = Field(description="smallest and largest value; null: no bound")
    unit: str
    formula: str


class HistoryLayerView(View):
    """One layer: for each metric a row for each chosen head, with a number for each step."""

    layer: int
    n_head: int
    head_dim: int
    heads: list[int] = Field(description="indices of the rows")
    values: dict[str, list[list[float | None]]]


class HeadLabelView(View):
    """What a head does on the probe; see docs/attention.md."""

    type: str
    strength: str
    score: float | None
    chance: float | None
    z: float | None
    control: float | None = None


class HeadHistoryView(View):
    """How every head changed during a training."""

    object: Literal["head_history"] = "head_history"
    run: str
    probe: ProbeView | None
    steps: list[int]
    metrics: dict[str, HistoryMetricView]
    layers: list[HistoryLayerView]
    types: list[dict[str, list[HeadLabelView]]] = Field(
        description="for each step the heads with a label, by layer.head; most heads have none"
    )
    scale: dict[str, list[float]] = Field(
        description="for each metric both ends of its colors, one scale for all layers"
    )
    reason: str | None = Field(description="why there are no steps: no_events, head_statistics_off, too_many_heads")


class HistoryCache(ReaderCache[HistoryReader]):
    """Histories of recently read event files, and the replies that were built of them.

    Args:
        max_values: Number of values to keep.
        max_bytes: Bytes of replies to keep.
    """

    def __init__(self, *, max_values: int = _MAX_VALUES, max_bytes: int = _MAX_BYTES) -> None:
        super().__init__(HistoryReader, max_values=max_values)
        self._bodies = BodyCache(max_bytes)

    def read(self, run: Run) -> History:
        """Read the history of a run.

        Args:
            run: The run.

        Returns:
            Its history; the same object until there are new events.
        """
        history = self.reader(run.events).read()
        self.evict()
        return history

    def body(self, key: BodyKey, history: History, build: Callable[[], bytes]) -> bytes:
        """Build the body of a reply, or find it if it was built of the same history.

        Args:
            key: All that the body depends on beside the history.
            history: The history, as `read` returned it.
            build: Builds the body.

        Returns:
            The body.
        """
        known = self._bodies.find(key, lambda source: source is history)
        body = known if known is not None else build()
        if known is None:
            self._bodies.keep(key, history, body)
        return body


@dataclass(frozen=True)
class HistoryReply:
    """What a request shows of a history.

    Attributes:
        run: Name of the run.
        config: Its configuration.
        history: The steps.
        wanted: The validated query.
    """

    run: str
    config: ExperimentConfig
    history: History
    wanted: HistoryQuery

    def render(self, media_type: str) -> bytes:
        """Build the body of the response.

        Args:
            media_type: Media type of JSON, CSV or PNG.

        Returns:
            The body.

        Raises:
            InvalidParameters: There is no such layer, head or scale, or a picture is to show several metrics.
            ResultNotFound: There is nothing to draw.
        """
        heads = chosen_heads(self.config.model.heads, self.wanted.layer, self.wanted.head)
        scale = _parse_scale(self.wanted.scale)
        if media_type == PNG:
            return self._picture(heads, scale)
        metrics = self.wanted.metric or get_args(ProbeMetric)
        values = {metric: _chosen(self.history.values(metric), heads) for metric in metrics}
        if media_type == CSV:
            return _csv(self.history.steps, heads, values).encode()
        return to_json(self._json(heads, values, scale))

    def _json(
        self, heads: Heads, values: Mapping[str, list[Array]], scale: tuple[float, float] | None
    ) -> dict[str, Any]:
        model, readings = self.config.model, self.history.readings
        probe = readings[-1].probe if readings else None
        chance = (probe or {}).get("chance", {})
        layers = [
            {
                "layer": layer,
                "n_head": model.heads[layer],
                "head_dim": model.head_dims[layer],
                "heads": list(chosen),
                "values": {metric: _rows(columns[place]) if columns else [] for metric, columns in values.items()},
            }
            for place, (layer, chosen) in enumerate(heads.items())
        ]
        return {
            "object": "head_history",
            "run": self.run,
            "probe": probe and {name: probe.get(name) for name in ProbeView.model_fields},
            "steps": self.history.steps,
            "metrics": {metric: _described(metric, chance.get(metric)) for metric in values},
            "layers": layers,
            "types": [reading.types for reading in readings],
            "scale": {metric: scale or auto_scale(columns) for metric, columns in values.items()},
            "reason": None if readings else self._reason(),
        }

    def _reason(self) -> str:
        if not self.config.evaluation.head_statistics:
            return "head_statistics_off"
        return "too_many_heads" if sum(self.config.model.heads) > MAX_HEADS else "no_events"

    def _picture(self, heads: Heads, scale: tuple[float, float] | None) -> bytes:
        metrics = self.wanted.metric or ("previous",)
        if len(metrics) > 1:
            detail = "must be one metric: a picture shows one"
            raise InvalidParameters([FieldProblem("/metric", detail, ",".join(metrics), (metrics[0],))])
        if not self.history.readings:
            raise ResultNotFound(self.run, "heads")
        (metric,) = metrics
        values, probe = _chosen(self.history.values(metric), heads), self.history.readings[-1].probe
        unit = METRICS[metric].unit
        plot = HistoryPlot(
            metric=metric if unit == "share" else f"{metric} ({unit})",
            title=f"{self.run}: {probe.get('sequences')} texts of {probe.get('tokens')} tokens",
            steps=self.history.steps,
            values=values,
            layers=list(heads),
            heads=list(heads.values()),
            scale=scale or auto_scale(values),
            even=probe.get("chance", {}).get(metric),
        )
        return head_history(plot, PictureStyle(cmap=self.config.testing.cmap, dpi=self.config.testing.dpi))


def history_response(cache: HistoryCache, run: Run, wanted: HistoryQuery, media_type: str) -> Response:
    """Answer with the history of a run's training; what was built of the same events is not built again.

    Args:
        cache: Reads the history.
        run: The run.
        wanted: The validated query, without a checkpoint.
        media_type: Media type of JSON, CSV or PNG.

    Returns:
        The response.

    Raises:
        ModelCoreError: As `HistoryReply.render`.
    """
    history = cache.read(run)

    def build() -> bytes:
        return HistoryReply(run.name, run.config(), history.thinned(wanted.max_points), wanted).render(media_type)

    # the configuration, which is parsed only to build, has the colors of a picture
    key = (run.path, run.config_stamp(), wanted.model_dump_json(), media_type)
    return respond(run.name, cache.body(key, history, build), media_type)


def respond(run: str, body: bytes, media_type: str) -> Response:
    """Wrap the body of a history.

    Args:
        run: Name of the run.
        body: The body.
        media_type: Its media type.

    Returns:
        The response.
    """
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if media_type == CSV:
        headers["Content-Disposition"] = f'attachment; filename="{run}-heads.csv"'
    return Response(body, media_type=media_type, headers=headers)


def _parse_scale(text: str) -> tuple[float, float] | None:
    """Both ends of a scale; None for `auto`."""
    if text == "auto":
        return None
    try:
        low, high = map(float, text.split(","))
        is_scale = low < high and math.isfinite(low) and math.isfinite(high)
    except ValueError:
        is_scale = False
    if not is_scale:
        detail = "must be auto, or two numbers of which the first is smaller, such as 0,1"
        raise InvalidParameters([FieldProblem("/scale", detail, text, ("auto", "0,1"))])
    return low, high


def _chosen(layers: Sequence[Array], heads: Heads) -> list[Array]:
    """The rows of the chosen heads; none of an empty history."""
    return [layers[layer][list(chosen)] for layer, chosen in heads.items()] if layers else []


def _rows(values: Array) -> list[list[float | None]]:
    """Numbers of each head, with None where there is none."""
    if np.isfinite(values).all():
        rows: list[list[float | None]] = values.tolist()
        return rows
    return [[value if math.isfinite(value) else None for value in row] for row in values.tolist()]


def _described(metric: str, chance: float | None) -> dict[str, Any]:
    known = METRICS[metric]
    return {"chance": chance, "bounds": list(known.bounds), "unit": known.unit, "formula": known.formula}


def _csv(steps: Sequence[int], heads: Heads, values: Mapping[str, list[Array]]) -> str:
    """RFC 4180: one row for each step and head, with empty cells where there is no value."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["step", "layer", "head", *values])
    writer.writerows(_csv_rows(steps, heads, values))
    return text.getvalue()


def _csv_rows(steps: Sequence[int], heads: Heads, values: Mapping[str, list[Array]]) -> Iterator[list[Any]]:
    columns = {metric: [_rows(layer) for layer in layers] for metric, layers in values.items()}
    for at, step in enumerate(steps):
        for place, (layer, chosen) in enumerate(heads.items()):
            for row, head in enumerate(chosen):
                yield [step, layer, head, *(column[place][row][at] for column in columns.values())]
