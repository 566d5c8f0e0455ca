"""What is made of captured attention beside pictures: weights, statistics, rollout and animations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.record import AttentionRecord
from model_core.config import Name
from model_core.schemas import Count, ExampleId
from service.attention.animations import PROBE, AnimationQuery, animation_reply
from service.attention.exact_lookup import ensure_exact
from service.attention.replies import RecordQuery, reply_from_record
from service.attention.rollout_bodies import Rollout
from service.attention.statistics_bodies import statistics_csv, statistics_json
from service.attention.style_query import Index, SortMetric, StyleQuery, TokenSpan
from service.attention.targets import AttentionTarget, read_testing, resolve_target
from service.attention.weight_bodies import Selection, npz_body, sparse_json, u8_bytes, u8_json
from service.deps import ServicesDep
from service.heads import known_heads
from service.metrics import CSV
from service.openapi import problems
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, QueryRoute

router = APIRouter(prefix="/attention/{run}/{example}", tags=["attention"], route_class=QueryRoute)

BYTES, NPZ = "application/octet-stream", "application/zip"
PNG, APNG, GIF = "image/png", "image/apng", "image/gif"
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_OBJECT: dict[str, Any] = {"schema": {"type": "object"}}
_ERRORS = problems(404, 406, 409, 422, 503, 507)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}
_OFFERED = {None: (JSON, BYTES), "u8": (BYTES, JSON), "sparse": (JSON,), "npz": (NPZ,)}
_ROLLOUT_TYPES = {"json": JSON, "npz": NPZ, "png": PNG}

AnimatedId = Annotated[str, Field(pattern=rf"^(0|[1-9][0-9]{{0,11}}|t_[0-9a-f]{{8,64}}|{PROBE})$")]
Numbers = Annotated[str, Field(max_length=1000, json_schema_extra={"example": "0"})]


class PartQuery(RecordQuery):
    """Which part of a record."""

    layer: Numbers | None = Field(default=None, description="layers, separated by commas; default: all")
    head: Numbers | None = Field(default=None, description="heads, which each of these layers has; default: all")
    tokens: TokenSpan | None = Field(default=None, description="only the tokens a:b, b not included")

    def part(self, record: AttentionRecord) -> Selection:
        """Choose the part.

        Args:
            record: The record.

        Returns:
            The part.

        Raises:
            InvalidParameters: The record has no such part.
        """
        return Selection.of(record, self.layer, self.head, self.tokens)


class WeightsQuery(PartQuery):
    """Which weights, and how they are written."""

    pool: Count | None = Field(
        default=None, ge=1, le=4096, description="most blocks of a side, each with its largest weight; only for levels"
    )
    format: Literal["u8", "sparse", "npz"] | None = Field(
        default=None,
        description="`u8`: levels, as bytes or JSON; `sparse`: the strongest keys of each query; `npz`: exact weights",
    )
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of `npz`")


@router.get(
    "/weights",
    summary="Get attention weights",
    response_class=Response,
    responses={200: {"content": {JSON: _OBJECT, BYTES: _BINARY, NPZ: _BINARY}}, **_NOT_MODIFIED, **_ERRORS},
)
async def weights(
    run: Name,
    example: ExampleId,
    wanted: Annotated[WeightsQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """Levels, 255 times the square root of a weight, with the statistics of their heads as JSON, or as bytes alone.

    With `format=npz` an inference process computes the weights exactly, the first time that they are asked for.
    """
    kind = choose(_accept(request), _OFFERED[wanted.format])

    def body(record: AttentionRecord) -> Any:
        part = wanted.part(record)
        if wanted.format == "npz":
            return npz_body(part, wanted.dtype)
        if wanted.format == "sparse":
            return sparse_json(part)
        return u8_json(part, wanted.pool) if kind == JSON else u8_bytes(part, wanted.pool)

    async def prepare(record: AttentionRecord, target: AttentionTarget) -> None:
        wanted.part(record)  # refused before a model runs
        await ensure_exact(services, request, record, target)

    name = f"{run}-{example}-weights.npz" if kind == NPZ else None
    first = prepare if kind == NPZ else None
    return await reply_from_record(services, request, run, example, wanted, kind, body, name=name, prepare=first)


class StatisticsQuery(PartQuery):
    """Which heads, in which order."""

    sort: SortMetric | None = Field(default=None, description="order by this metric; default: by layer and head")
    order: Literal["asc", "desc"] = Field(default="desc", description="of `sort`; null comes last")
    format: Literal["json", "csv"] | None = Field(default=None, description="else what Accept prefers")


@router.get(
    "/statistics",
    summary="Get statistics of every head",
    response_class=Response,
    responses={200: {"content": {JSON: _OBJECT, CSV: {"schema": {"type": "string"}}}}, **_NOT_MODIFIED, **_ERRORS},
)
async def statistics(
    run: Name,
    example: ExampleId,
    wanted: Annotated[StatisticsQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """Numbers of each head, beside those of even attention, with the formulas; CSV has one row a head.

    `types` are the labels of a head by the probe of the checkpoint, null if it was not probed.
    """
    kind = {"json": JSON, "csv": CSV}[wanted.format] if wanted.format else choose(_accept(request), (JSON, CSV))
    write = statistics_csv if kind == CSV else statistics_json
    target = await run_in_threadpool(resolve_target, services.layout, run, wanted.checkpoint)
    probed = await run_in_threadpool(known_heads, services, run, target)
    types = None if probed is None else probed.types

    def body(record: AttentionRecord) -> Any:
        return write(wanted.part(record), wanted.sort, types, is_ascending=wanted.order == "asc")

    name = f"{run}-{example}-statistics.csv" if kind == CSV else None
    return await reply_from_record(services, request, run, example, wanted, kind, body, name=name, depends_on=types)


def _accept(request: Request) -> str | None:
    return request.headers.get("accept")


class RolloutQuery(StyleQuery, RecordQuery):
    """Up to which layer, and how it is written; colors, size and labels are those of a picture."""

    layer: Index | None = Field(default=None, description="the last layer that counts; default: all")
    scale: Literal["fixed", "auto"] = Field(default="auto", description="colours from 0 to 1, or to the largest share")
    format: Literal["json", "npz", "png"] | None = Field(default=None, description="else what Accept prefers")


@router.get(
    "/rollout",
    summary="Get the attention rollout of a text",
    response_class=Response,
    responses={200: {"content": {JSON: _OBJECT, NPZ: _BINARY, PNG: _BINARY}}, **_NOT_MODIFIED, **_ERRORS},
)
async def rollout(
    run: Name,
    example: ExampleId,
    wanted: Annotated[RolloutQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """How much of each token arrives at each place, beside even heads of the same depth, and the ratio of both."""
    kind = _ROLLOUT_TYPES[wanted.format] if wanted.format else choose(_accept(request), (JSON, NPZ, PNG))
    testing = await run_in_threadpool(read_testing, services.layout, run)
    style = wanted.style(testing, "png")

    def body(record: AttentionRecord) -> list[bytes]:
        found = Rollout.of(record, wanted.layer)
        if kind == PNG:
            return [found.to_picture(style)]
        return [found.to_json() if kind == JSON else found.to_npz()]

    name = f"{run}-{example}-rollout.npz" if kind == NPZ else None
    return await reply_from_record(services, request, run, example, wanted, kind, body, name=name, depends_on=style)


@router.get(
    "/animation.{format}",
    summary="Get an animation over the steps of a training",
    response_class=Response,
    responses={200: {"content": {APNG: _BINARY, PNG: _BINARY, GIF: _BINARY}}, **_NOT_MODIFIED, **_ERRORS},
)
async def animation(
    run: Name,
    example: AnimatedId,
    format: Literal["png", "gif"],  # noqa: A002 - the suffix of the address
    wanted: Annotated[AnimationQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """One frame for each step that has a checkpoint; with the id `probe` those that the training kept."""
    kind = choose(_accept(request), (GIF,) if format == "gif" else (APNG, PNG))
    return await animation_reply(services, request, run, example, wanted, kind)
