"""Ablations of a run's heads: the request for one, its cost, the results on disk, and their views."""

from __future__ import annotations

import contextlib
from itertools import groupby, islice
from statistics import median
from typing import Any, Literal, Self

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.heads.ablation_record import (
    AblationOptions,
    count_passes,
    list_results,
    read_result,
    read_sample,
    result_table,
)
from model_core.attention.pictures.head_grid import GridPlot, head_grid
from model_core.attention.pictures.layout import PictureStyle
from model_core.errors import ResultNotFound
from model_core.storage.dataset import dataset_of
from model_core.storage.events import read_events
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service import submission
from service.admission import ablation_file, not_ready, read_spec
from service.deps import Services
from service.head_results import CSV, PNG, ResultLinks, etag_of
from service.protocol.parsing import JSON, QueryModel
from service.schemas import Listed, View
from worker.jobs.schemas import Submission

FORWARD_OF_STEP = 0.33  # time of a forward pass beside that of a training step of as many tokens
PASS_OF_FORWARD = (0.6, 1.2)  # time of a pass beside that of a forward pass: as measured, with room on both sides

_EDITION = 1  # increase it when the same ablation is shown differently
_SPEEDS = 21  # steps, of which the median counts


class AblationQuery(QueryModel):
    """In which form an ablation is shown."""

    format: Literal["json", "csv", "png"] | None = Field(default=None, description="else what Accept prefers")


class ValidateQuery(QueryModel):
    """Whether a request is only checked."""

    validate_only: bool = Field(default=False, description="answer with the cost and submit nothing")


class AblationSample(View):
    """The text of an ablation."""

    split: str
    windows: int
    length: int = Field(description="tokens of a window")
    tokens: int
    sha256: str = Field(description="of the token ids: equal samples have equal ones")


class AblationView(View):
    """What was measured of a checkpoint without its heads."""

    object: Literal["ablation"] = "ablation"
    name: str
    run: str
    checkpoint: str
    step: int
    sha256: str
    dataset: str
    baseline: str
    draws: int
    sample: AblationSample
    loss: float = Field(description="of the whole model on the sample, nats a token")
    passes: float
    seconds: float
    device: str
    created_at: str
    links: ResultLinks

    @classmethod
    def of(cls, result: dict[str, Any]) -> Self:
        """Build the view.

        Args:
            result: Content of the result's file.

        Returns:
            The view.
        """
        links = ResultLinks.of(result["run"], f"ablations/{result['name']}")
        shown = {name: value for name, value in result.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "links": links})


class AblatedPart(View):
    """What the loss gains without a head, or without all heads of a layer."""

    layer: int
    n_head: int
    head_dim: int
    change: float = Field(description="of the loss, nats a token")
    stderr: float
    kl: float = Field(description="KL(clean || ablated), nats a token")
    kl_stderr: float
    clear: bool = Field(description="change > 3 stderr")


class AblatedHead(AblatedPart):
    """One head."""

    head: int
    above_null: bool | None = Field(description="null in a layer of one head, where the null is the head")


class NullView(View):
    """Random subspaces of a layer's joined heads, as large as one head."""

    mean: float
    sd: float
    draws: int


class AblatedLayer(AblatedPart):
    """All heads of a layer at once."""

    sum_of_heads: float
    ratio: float | None = Field(description="change / sum_of_heads: 1 where heads add up")
    null: NullView | None


class AblationDetail(AblationView):
    """An ablation with its heads and layers."""

    replaced_by: str
    formulas: dict[str, str]
    heads: list[AblatedHead]
    layers: list[AblatedLayer]


class SpeedView(View):
    """The training whose speed a cost was computed from."""

    run: str
    device: str
    tokens_per_s: float


class AblationQuote(View):
    """What an ablation would cost."""

    object: Literal["ablation_quote"] = "ablation_quote"
    passes: float = Field(description="whole passes of the model over the sample")
    tokens: int
    seconds: tuple[float, float] | None = Field(description="from, to; null where the run's speed is not known")
    based_on: SpeedView | None


async def submit(
    services: Services, run: str, wanted: AblationOptions, *, key: str | None
) -> Submission | AblationDetail:
    """Submit the job that ablates the heads of a checkpoint; equal requests share one job.

    Args:
        services: Services of this process.
        run: Name of the run.
        wanted: The options.
        key: The client's Idempotency-Key.

    Returns:
        The job; or the result, if it exists already.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        DatasetNotReady: The dataset of the run is not ready.
        InvalidData: The split gives no sample.
    """
    tree = {"experiment_name": run, "job": {"kind": "ablate", "options": wanted.model_dump()}}
    prepared = await services.admission.submit(read_spec(tree, run=None, data_root=services.settings.data))
    if prepared.taken == "ready":
        return await run_in_threadpool(_made, services.layout, run, wanted)
    return await submission.submit(services, prepared, key=key)


def quote(layout: Layout, name: str, wanted: AblationOptions) -> AblationQuote:
    """Compute what an ablation would cost.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        wanted: The options.

    Returns:
        Passes and tokens, and the time at the speed of the run's own training, if it was trained here.

    Raises:
        ModelCoreError: See `submit`.
    """
    run = Run.open(layout.run(name))
    run.resolve(wanted.checkpoint)
    config = run.config()
    dataset = dataset_of(config, layout)
    if dataset.missing():
        raise not_ready(dataset, config)
    model = config.model
    sample = read_sample(dataset, wanted, block_size=model.block_size, vocab_size=model.vocab_size)
    passes, tokens, speed = count_passes(model.heads, wanted), sample.windows * sample.length, _speed(run)
    seconds = None
    if speed is not None:
        forward_s = passes * tokens / speed.tokens_per_s * FORWARD_OF_STEP
        low, high = (round(forward_s * share, 2) for share in PASS_OF_FORWARD)
        seconds = (low, high)
    return AblationQuote(passes=passes, tokens=tokens, seconds=seconds, based_on=speed)


def page(layout: Layout, run: str) -> Listed[AblationView]:
    """List the ablations of a run.

    Args:
        layout: Paths of the data root.
        run: Name of the run.

    Returns:
        All of them on one page, by name.

    Raises:
        RunNotFound: There is no such run.
    """
    name = Run.open(layout.run(run)).name
    data = []
    for found in list_results(layout, name):
        with contextlib.suppress(ResultNotFound):  # deleted meanwhile
            data.append(AblationView.of(read_result(layout, name, found)))
    return Listed[AblationView].of(data, [view.name for view in data], has_more=False)


def find(layout: Layout, run: str, name: str) -> dict[str, Any]:
    """Find an ablation.

    Args:
        layout: Paths of the data root.
        run: Name of the run.
        name: Name of the ablation.

    Returns:
        Content of the result's file.

    Raises:
        RunNotFound: There is no such run.
        ResultNotFound: The run has no such ablation.
    """
    return read_result(layout, Run.open(layout.run(run)).name, name)


def etag(result: dict[str, Any], media_type: str) -> str:
    """Compute the ETag of a reply.

    Args:
        result: Content of the result's file.
        media_type: Media type of the reply.

    Returns:
        The tag, with its quotes.
    """
    return etag_of(_EDITION, result["run"], result["name"], result["created_at"], media_type)


def render(result: dict[str, Any], media_type: str) -> Response:
    """Build the reply about an ablation.

    Args:
        result: Content of the result's file.
        media_type: Media type of JSON, CSV or PNG.

    Returns:
        The reply, without its validators.
    """
    if media_type == JSON:
        return Response(AblationDetail.of(result).model_dump_json(), media_type=JSON)
    if media_type == PNG:
        return Response(_picture(result), media_type=PNG)
    named = {"Content-Disposition": f'attachment; filename="{result["run"]}-{result["name"]}.csv"'}
    return Response(result_table(result), media_type=CSV, headers=named)


def _made(layout: Layout, name: str, wanted: AblationOptions) -> AblationDetail:
    run = Run.open(layout.run(name))
    path = ablation_file(layout, run, run.resolve(wanted.checkpoint), wanted)
    return AblationDetail.of(read_result(layout, name, path.stem))


def _speed(run: Run) -> SpeedView | None:
    """Median speed of the last steps, and the device of the last attempt; None without steps."""
    events = read_events(run.events, types={"start", "step"}) if run.events.is_file() else ()
    device, speeds = "unknown", list[float]()
    for event in events:
        if event["type"] == "start":
            device = str((event.get("used") or {}).get("device", device))
        elif isinstance(event.get("tokens_per_s"), int | float) and event["tokens_per_s"] > 0:
            speeds.append(float(event["tokens_per_s"]))
    if not speeds:
        return None
    return SpeedView(run=run.name, device=device, tokens_per_s=round(median(islice(reversed(speeds), _SPEEDS)), 1))


def _picture(result: dict[str, Any]) -> bytes:
    rows = [list(heads) for _, heads in groupby(result["heads"], key=lambda head: head["layer"])]
    sample = result["sample"]
    notes = f"{result['run']}, {result['checkpoint']}, step {result['step']}; read replaced by {result['replaced_by']}"
    plot = GridPlot(
        title="Loss change without a head, nats a token",
        notes=(notes, f"{sample['tokens']:,} tokens of the {sample['split']} split; clean loss {result['loss']:.4f}"),
        values=[[head["change"] for head in row] for row in rows],
        whole=[layer["change"] for layer in result["layers"]],
        is_marked=[[head["above_null"] is False for head in row] for row in rows],
        mark="not above the null of random subspaces",
    )
    return head_grid(plot, PictureStyle())
