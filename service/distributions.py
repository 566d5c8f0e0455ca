"""Distributions of heads over many examples: the request for one, the results on disk, and their views.

A distribution is measured by the test of a checkpoint, so a request submits a test without pictures, unless the result
is there already.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.head_metrics import METRICS
from model_core.attention.heads.distribution import TEXT_METRICS, check_distribution, distance_bins
from model_core.attention.heads.distribution_record import (
    DistributionRecord,
    distribution_directory,
    distribution_key,
    list_distributions,
)
from model_core.attention.pictures.distribution_plots import BoxPlot, DistancePlot, decile_boxes, distance_bars
from model_core.attention.pictures.layout import PictureStyle
from model_core.config import Config, TestingConfig, Whole
from model_core.errors import InvalidData, ResultNotFound
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import EXAMPLES, dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service import submission
from service.admission import not_ready
from service.deps import Services
from service.head_results import CSV, PNG, ResultLinks, etag_of
from service.protocol.parsing import JSON, QueryModel
from service.schemas import Listed, View, link
from worker.jobs.schemas import Submission

_EDITION = 1  # increase it when the same distribution is shown differently

MetricName = Literal[TEXT_METRICS]  # type: ignore[valid-type]


class DistributionRequest(Config):
    """On what the heads of a checkpoint are measured."""

    checkpoint: str = Field(
        default="best", min_length=1, max_length=100, description="`best`, `final`, `latest`, `step=N` or a file name"
    )
    examples: Whole = Field(
        default=256, ge=1, le=100_000, description="test examples, spread evenly over the split; at most all of them"
    )
    max_tokens: Whole = Field(default=256, ge=2, le=2**17, description="of each example; at most block_size")


class DistributionQuery(QueryModel):
    """Which heads and numbers, and in which form."""

    layer: int | None = Field(default=None, ge=0, le=65_536, description="one layer; default: all layers")
    head: int | None = Field(default=None, ge=0, le=65_536, description="one head of each chosen layer")
    metric: MetricName | None = Field(
        default=None, description="one statistic, with the examples of its deciles; default: all, without examples"
    )
    view: Literal["values", "distances", "key_tokens", "query_tokens"] | None = Field(
        default=None, description="what CSV and PNG show; default: values as CSV, distances as PNG (PNG has these two)"
    )
    format: Literal["json", "csv", "png"] | None = Field(default=None, description="else what Accept prefers")


class SampleView(View):
    """The texts of a distribution."""

    sha256: str = Field(description="of their token ids: equal samples have equal ones")
    examples: int
    tokens: int = Field(description="of all texts")
    longest: int
    max_tokens: int
    too_short: int = Field(description="examples of less than two tokens, which are left out")


class DistributionView(View):
    """What was measured of the heads of a checkpoint over many examples."""

    object: Literal["distribution"] = "distribution"
    name: str
    run: str
    checkpoint: str
    step: int
    sha256: str
    dataset: str
    sample: SampleView
    metrics: list[str]
    created_at: str
    links: ResultLinks

    @classmethod
    def of(cls, record: DistributionRecord) -> Self:
        """Build the view.

        Args:
            record: The distribution on disk.

        Returns:
            The view.
        """
        manifest = record.manifest
        links = ResultLinks.of(manifest["run"], f"distributions/{record.name}")
        shown = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "name": record.name, "links": links})


class MetricView(View):
    """One statistic of a head over the texts."""

    mean: float
    sd: float
    deciles: list[float] = Field(description="smallest value, the nine deciles, largest value")


class DistanceView(View):
    """Attention at some distances from query back to key."""

    first: int
    last: int
    share: float
    even: float = Field(description="share of even attention on the same queries")


class KeyTokenView(View):
    """How much weight a token receives."""

    token: int
    text: str
    lift: float = Field(description="weight received, over what even attention gives the same places")
    count: int = Field(description="places of the token")


class QueryTokenView(View):
    """How much a token looks at others than the first key and itself."""

    token: int
    text: str
    share: float
    even: float
    lift: float = Field(description="share / even")
    count: int = Field(description="queries of the token")


class ExampleLinks(View):
    """Links of an example."""

    attention: str


class DistributionExample(View):
    """An example and its value."""

    decile: int | None = Field(description="0 to 10; null for one of the highest values")
    id: str
    tokens: int
    value: float
    links: ExampleLinks


class DistributionHead(View):
    """One head over all texts."""

    layer: int
    head: int
    metrics: dict[str, MetricView | None] = Field(description="null where no text is long enough")
    distances: list[DistanceView]
    key_tokens: list[KeyTokenView]
    query_tokens: list[QueryTokenView]
    examples: list[DistributionExample] = Field(description="with `metric`: at its deciles, then the highest")


class DistributionDetail(DistributionView):
    """A distribution with its heads."""

    formulas: dict[str, str]
    even: dict[str, float | None] = Field(description="mean of even attention over the same texts")
    heads: list[DistributionHead]


async def submit(
    services: Services, run: str, wanted: DistributionRequest, *, key: str | None
) -> Submission | DistributionView:
    """Submit the test that measures a distribution.

    Args:
        services: Services of this process.
        run: Name of the run.
        wanted: The checkpoint and the sample.
        key: The client's Idempotency-Key.

    Returns:
        The job; or the distribution, if it was measured already.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        DatasetNotReady: The dataset of the run has no test examples.
        InvalidData: The dataset has no test example.
        AttentionTooLarge: It would take too much memory; the error has the number of examples that fits.
    """
    found = await run_in_threadpool(_measured, services.layout, run, wanted)
    if found is not None:
        return found
    testing = {
        "checkpoint_path": wanted.checkpoint,
        "num_test_samples": 0,
        "num_statistics_samples": wanted.examples,
        "test_sample_length": wanted.max_tokens,
    }
    execution = {"train": False, "test": True}
    tree = {"job": {"kind": "test"}, "experiment_name": run, "execution": execution, "testing": testing}
    prepared = await submission.prepare(services, tree, run=None)
    return await submission.submit(services, prepared, key=key)


def page(layout: Layout, run: str) -> Listed[DistributionView]:
    """List the distributions of a run.

    Args:
        layout: Paths of the data root.
        run: Name of the run.

    Returns:
        All of them on one page, by name.

    Raises:
        RunNotFound: There is no such run.
    """
    name = Run.open(layout.run(run)).name
    data = [DistributionView.of(record) for record in list_distributions(layout, name)]
    return Listed[DistributionView].of(data, [view.name for view in data], has_more=False)


def find(layout: Layout, run: str, name: str) -> DistributionRecord:
    """Find a distribution.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        name: Name of the distribution.

    Returns:
        The distribution.

    Raises:
        RunNotFound: There is no such run.
        ResultNotFound: The run has no such distribution.
    """
    opened = Run.open(layout.run(run))
    record = DistributionRecord.named(layout, opened.name, name)
    if record is None:
        raise ResultNotFound(opened.name, name)
    return record


def etag(record: DistributionRecord, wanted: DistributionQuery, media_type: str) -> str:
    """Compute the ETag of a reply.

    Args:
        record: The distribution.
        wanted: What is shown.
        media_type: Media type of the reply.

    Returns:
        The tag, with its quotes.
    """
    shown = wanted.model_dump(exclude={"format"})
    return etag_of(_EDITION, record.name, record.manifest["created_at"], shown, media_type)


def render(record: DistributionRecord, wanted: DistributionQuery, media_type: str) -> Response:
    """Build the reply about a distribution.

    Args:
        record: The distribution.
        wanted: What is shown.
        media_type: Media type of JSON, CSV or PNG.

    Returns:
        The reply, without its validators.

    Raises:
        InvalidParameters: There is no such layer or head.
        ResultNotFound: It was deleted meanwhile.
    """
    places = record.places(layer=wanted.layer, head=wanted.head)
    try:
        return _rendered(record, wanted, places, media_type)
    except FileNotFoundError:
        raise ResultNotFound(record.manifest["run"], record.name) from None


def _rendered(
    record: DistributionRecord, wanted: DistributionQuery, places: Sequence[tuple[int, int]], media_type: str
) -> Response:
    if media_type == JSON:
        return Response(_detail(record, wanted, places).model_dump_json(), media_type=JSON)
    if media_type == PNG:
        return Response(_picture(record, wanted, places), media_type=PNG)
    named = {"Content-Disposition": f'attachment; filename="{record.manifest["run"]}-{record.name}.csv"'}
    return Response(_table(record, wanted, places), media_type=CSV, headers=named)


def _measured(layout: Layout, name: str, wanted: DistributionRequest) -> DistributionView | None:
    """The distribution if it is there; refuses what the job could not measure."""
    run = Run.open(layout.run(name))
    info = _resolve(run, wanted.checkpoint)
    config = run.config()
    dataset = dataset_of(config, layout)
    if not (dataset.directory / EXAMPLES).is_file():
        raise not_ready(dataset, config)
    count = min(wanted.examples, dataset.example_count)
    if count == 0:
        raise InvalidData(f"dataset {dataset.name!r} has no test example; one with more documents has")
    model = config.model
    tokens = min(wanted.max_tokens, model.block_size)
    check_distribution(sum(model.heads), count, tokens, model.vocab_size, pointer="/examples")
    directory = distribution_directory(layout, run.name, info, distribution_key(dataset, count, tokens))
    record = DistributionRecord.open(directory)
    return None if record is None else DistributionView.of(record)


def _resolve(run: Run, reference: str) -> CheckpointInfo:
    return run.resolve(TestingConfig(checkpoint_path=reference).checkpoint)  # as the job reads it


def _detail(
    record: DistributionRecord, wanted: DistributionQuery, places: Sequence[tuple[int, int]]
) -> DistributionDetail:
    metrics = [wanted.metric] if wanted.metric else list(record.manifest["metrics"])
    nothing: list[dict[str, Any]] = [{"deciles": [], "highest": []}] * len(places)
    examples = record.examples(wanted.metric, places) if wanted.metric else nothing
    quantiles, distances, tokens = record.quantiles(metrics, places), record.distances(places), record.tokens(places)
    parts = zip(places, quantiles, distances, tokens, examples, strict=True)
    heads = [
        {
            "layer": layer, "head": head, "metrics": numbers, "distances": bins, **lifts,
            "examples": [_example(record, entry) for entry in (*shown["deciles"], *shown["highest"])],
        }
        for (layer, head), numbers, bins, lifts, shown in parts
    ]  # fmt: skip
    view = DistributionView.of(record)
    extra = {"formulas": record.manifest["formulas"], "even": record.manifest["even"], "heads": heads}
    return DistributionDetail.model_validate({**dict(view), **extra})


def _example(record: DistributionRecord, entry: dict[str, Any]) -> dict[str, Any]:
    manifest = record.manifest
    address = link(f"/attention/{manifest['run']}/{entry['id']}")
    keyed = f"{address}?checkpoint=sha256={manifest['sha256']}&max_tokens={entry['tokens']}"
    return {"decile": None, **entry, "links": {"attention": keyed}}


def _table(record: DistributionRecord, wanted: DistributionQuery, places: Sequence[tuple[int, int]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    view = wanted.view or "values"
    if view == "values":
        metrics = [wanted.metric] if wanted.metric else list(record.manifest["metrics"])
        writer.writerow(["layer", "head", "metric", "mean", "sd", *(f"d{10 * place}" for place in range(11))])
        for place, found in zip(places, record.quantiles(metrics, places), strict=True):
            for name in metrics:
                numbers = found[name]
                cells = [""] * 13 if numbers is None else [numbers["mean"], numbers["sd"], *numbers["deciles"]]
                writer.writerow([*place, name, *cells])
        return text.getvalue()
    rows = record.distances(places) if view == "distances" else [found[view] for found in record.tokens(places)]
    columns = {
        "distances": ["first", "last", "share", "even"],
        "key_tokens": ["token", "text", "lift", "count"],
        "query_tokens": ["token", "text", "share", "even", "lift", "count"],
    }[view]
    writer.writerow(["layer", "head", *columns])
    for place, entries in zip(places, rows, strict=True):
        writer.writerows([*place, *(entry[column] for column in columns)] for entry in entries)
    return text.getvalue()


def _picture(record: DistributionRecord, wanted: DistributionQuery, places: Sequence[tuple[int, int]]) -> bytes:
    manifest = record.manifest
    sample = manifest["sample"]
    title = f"{manifest['run']}, {manifest['checkpoint']}, step {manifest['step']}: {sample['examples']} examples"
    if wanted.view == "values" or (wanted.view is None and wanted.metric is not None):
        name = wanted.metric or "entropy_relative"
        numbers = record.quantiles([name], places)
        missing = [np.nan] * 11
        deciles = np.array([missing if found[name] is None else found[name]["deciles"] for found in numbers])  # (S, 11)
        unit = METRICS[name].unit
        plot = BoxPlot(f"{name} ({unit})", title, places, deciles, manifest["even"][name])
        return decile_boxes(plot, PictureStyle())
    heads = record.distances(places)
    shares = np.array([[entry["share"] for entry in head] for head in heads])  # (S, P)
    even = np.array([entry["even"] for entry in heads[0]])  # (P,)
    return distance_bars(DistancePlot(title, places, distance_bins(sample["longest"]), shares, even), PictureStyle())
