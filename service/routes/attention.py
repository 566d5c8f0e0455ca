"""Attention of a text, as pictures and manifests: found on disk, captured once if missing, drawn here."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from model_core.attention.pictures.record_pictures import PictureContent, record_picture
from model_core.attention.record import AttentionRecord, default_max_tokens
from model_core.config import Name, TestingConfig
from model_core.schemas import AttentionRequest, CheckpointRef, Count, ExampleId, TokenCount
from service.attention.lookup import read_attention
from service.attention.style_query import CONFIGURED, Index, SortMetric, StyleQuery, TokenSpan
from service.attention.targets import read_testing, resolve_target
from service.attention.views import AttentionView
from service.deps import Services, ServicesDep
from service.openapi import problems
from service.protocol.negotiation import choose, etag_matches
from service.protocol.parsing import JSON, QueryRoute, validate

MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
_FORMATS = {media_type: name for name, media_type in MEDIA_TYPES.items()}
_EDITION = 2  # increase it when the same attention is drawn differently

router = APIRouter(prefix="/attention/{run}/{example}", tags=["attention"], route_class=QueryRoute)

_PICTURES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()}
_ERRORS = problems(404, 406, 409, 422, 503, 507)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


class PictureQuery(StyleQuery):
    """What to look at, and how it is drawn."""

    checkpoint: CheckpointRef = Field(
        default="best", description="best, final, latest, step=N, a file name or sha256=HASH"
    )
    layer: Index | None = Field(default=None, description="one layer; default: all layers")
    head: Index | None = Field(default=None, description="one head of that layer")
    tokens: TokenSpan | None = Field(default=None, description="only the tokens a:b, b not included")
    highlight: str | None = Field(
        default=None, max_length=1000, description="tokens to mark, such as 3,7-9", json_schema_extra={"example": "0"}
    )
    sort: SortMetric | None = Field(default=None, description="heads in the order of this metric, each with its value")
    order: Literal["asc", "desc"] = Field(default="desc", description="of `sort`; null comes last")
    top: Count | None = Field(default=None, ge=1, le=65_536, description="only the first heads of `sort`")
    weighting: Literal["attention", "norm"] = Field(
        default="attention", description="`norm`: times the norm of what each key contributes, rows scaled to 1"
    )
    format: Literal["png", "svg", "pdf"] | None = Field(default=None, description="else what Accept prefers")
    max_tokens: TokenCount | None = Field(default=None, description=CONFIGURED)

    @property
    def content(self) -> PictureContent:
        """What the picture shows of the record, which has the length that was asked for."""
        return PictureContent(
            self.layer, self.head, None, self.tokens, self.highlight,
            sort=self.sort, is_ascending=self.order == "asc", top=self.top, weighting=self.weighting,
        )  # fmt: skip


@router.get(
    "",
    summary="Get an image or the manifest of a text",
    response_class=Response,
    responses={
        200: {"model": AttentionView, "content": {JSON: {}, **_PICTURES}},
        **_NOT_MODIFIED,
        **_ERRORS,
    },
)
async def attention(
    run: Name,
    example: ExampleId,
    wanted: Annotated[PictureQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """All layers, or one with `?layer=`, or one head; with `Accept: application/json` the manifest.

    `example` is the number of a test example. Captured the first time it is asked for.
    """
    return await answer(services, request, run, example, wanted)


@router.get(
    "/layer{layer}.{format}",
    summary="Get the image of one layer",
    response_class=Response,
    responses={200: {"content": _PICTURES}, **_NOT_MODIFIED, **_ERRORS},
)
async def layer(
    run: Name,
    example: ExampleId,
    layer: Index,
    format: Literal["png", "svg", "pdf"],  # noqa: A002 - the suffix of the address
    wanted: Annotated[PictureQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """Under the name that the file has on disk."""
    chosen = wanted.model_copy(update={"layer": layer, "format": format})
    return await answer(services, request, run, example, chosen)


async def answer(services: Services, request: Request, run: str, example: str, wanted: PictureQuery) -> Response:
    """Find or capture the attention, and reply with a picture or the manifest.

    Args:
        services: Services of this process.
        request: The HTTP request: its headers and its connection.
        run: Name of the run.
        example: Number of a test example, or the id of a text.
        wanted: The validated query.

    Returns:
        The picture, the manifest as JSON, or 304 if the client has it already.

    Raises:
        ModelCoreError: The run, the checkpoint, the example, the layer or the head does not exist; no inference
            process can capture it; the picture cannot be drawn.
    """
    target = await run_in_threadpool(resolve_target, services.layout, run, wanted.checkpoint)
    testing = await run_in_threadpool(read_testing, services.layout, run)
    kind = choose(request.headers.get("accept"), _offered(wanted, testing))
    style, content = wanted.style(testing, _FORMATS.get(kind, "png")), wanted.content
    text = validate(AttentionRequest, {"run": run, "id": example, "max_tokens": wanted.max_tokens})
    key = (_EDITION, kind, run, example, style, content, wanted.max_tokens or default_max_tokens(testing))
    headers = target.headers(target.sha256, *key)
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)

    async def reply(record: AttentionRecord) -> Response:
        headers = target.headers(record.manifest["sha256"], *key)
        if kind == JSON:
            view = AttentionView.of(record.manifest, target.warnings)
            return JSONResponse(view.model_dump(mode="json"), headers=headers)
        draw = partial(record_picture, record, content, style)
        return Response(await to_thread.run_sync(draw, limiter=services.drawing), media_type=kind, headers=headers)

    return await read_attention(services, request, text, target, reply)


def _offered(wanted: PictureQuery, testing: TestingConfig) -> tuple[str, ...]:
    if wanted.format is not None:
        return (MEDIA_TYPES[wanted.format], JSON)
    usual = MEDIA_TYPES[testing.format]
    return (usual, JSON, *(kind for kind in _FORMATS if kind != usual))
