"""Texts whose attention is looked at: sending one, the list of those of a run, and deletion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from model_core.attention.heads.detector import TYPES
from model_core.attention.quota import MAX_RECORD_WEIGHTS, fitting_tokens
from model_core.attention.record import is_example
from model_core.attention.texts import CapturedText, delete_text, list_ids, open_text, order_of, size_of
from model_core.config import Name
from model_core.errors import TextNotFound
from model_core.schemas import ExampleId
from model_core.storage.run import Run
from service.attention.style_query import SortMetric
from service.attention.text_capture import CapturedTextView, TextCaptureRequest, capture_text
from service.deps import Services, ServicesDep
from service.openapi import json_body, problems
from service.protocol.parsing import QueryModel, QueryRoute, read_json_object, validate
from service.schemas import Listed, View, link, warning_headers

router = APIRouter(prefix="/attention", tags=["attention"], route_class=QueryRoute)

_BEGIN = 80  # characters
_FORMATS = {
    "picture": ("png", "svg", "pdf"),
    "weights": ("u8", "sparse", "npz"),
    "statistics": ("json", "csv"),
    "rollout": ("json", "npz", "png"),
    "animation": ("png", "gif"),
}
_EXAMPLE = {"run": "quickstart", "text": "One day, a fox met a cat."}


class TextsQuery(QueryModel):
    """One page of the list."""

    after: ExampleId | None = Field(default=None, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)
    kind: Literal["example", "text"] | None = Field(default=None, description="only examples, or only texts")


class RecordView(View):
    """What was captured of a text under one checkpoint."""

    checkpoint: str
    step: int
    sha256: str
    tokens: int
    size_bytes: int
    created_at: str


class TextLinks(View):
    """Links of a text."""

    self_: str = Field(serialization_alias="self")


class TextView(View):
    """A text that was looked at."""

    id: str
    kind: Literal["example", "text"]
    begins: str = Field(description="the first characters of the text")
    tokens: int = Field(description="of its longest record")
    checkpoints: list[str]
    records: list[RecordView]
    links: TextLinks


class AttentionLimits(View):
    """What can be asked for, so that a client need not guess."""

    block_size: int
    max_tokens: int = Field(description="most tokens of a record of this model")
    formats: dict[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    types: tuple[str, ...]


class TextList(Listed[TextView]):
    """One page of texts."""

    limits: AttentionLimits


@router.post(
    "",
    summary="Capture the attention of a text",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": CapturedTextView},
        200: {"model": CapturedTextView, "description": "It was captured before"},
        **problems(400, 404, 409, 413, 415, 422, 503, 507),
    },
    openapi_extra={"requestBody": json_body(TextCaptureRequest, _EXAMPLE)},
)
async def send_text(services: ServicesDep, request: Request) -> Response:
    """`text`, or `tokens` (ids). No start token is added; `Location` is the address of the manifest.

    The whole text by default; `max_tokens` cuts it. `layers` and `heads` choose what the reply holds.
    """
    tree = await read_json_object(request, uncounted=("tokens",))
    asked = await run_in_threadpool(validate, TextCaptureRequest, tree, strict=True)
    view, is_new, target = await capture_text(services, request, asked)
    headers = {
        "Location": view.links.self_, "Cache-Control": "private, no-cache", **warning_headers(target.warnings),
    }  # fmt: skip
    return JSONResponse(view.model_dump(mode="json"), 201 if is_new else 200, headers)


@router.get("/{run}", summary="List the texts of a run that were looked at", responses=problems(404, 422))
async def texts(
    run: Name, wanted: Annotated[TextsQuery, Query()], services: ServicesDep, request: Request, response: Response
) -> TextList:
    """Examples by number, then texts by id; `last_id` is the next page's `after`."""
    page = await run_in_threadpool(_list, services, run, wanted)
    if page.has_more:
        response.headers["Link"] = f'<{request.url.include_query_params(after=page.last_id)}>; rel="next"'
    return page


@router.delete(
    "/{run}/{example}",
    summary="Delete everything captured of a text",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409, 422),
)
async def delete(run: Name, example: ExampleId, services: ServicesDep) -> Response:
    """Its records under every checkpoint, its pictures, and the text itself."""
    await run_in_threadpool(_delete, services, run, example)
    return Response(status_code=204)


def _list(services: Services, run: str, wanted: TextsQuery) -> TextList:
    config = Run.open(services.layout.run(run)).config()
    ids = [
        name
        for name in list_ids(services.layout, run)
        if wanted.kind is None or is_example(name) == (wanted.kind == "example")
    ]
    rest = (name for name in ids if wanted.after is None or order_of(name) > order_of(wanted.after))
    found: list[CapturedText] = []
    for name in rest:
        if (text := open_text(services.layout, run, name)) is not None:
            found.append(text)
        if len(found) > wanted.limit:
            break
    shown = found[: wanted.limit]
    model = config.model
    most = min(
        model.block_size,
        math.isqrt(MAX_RECORD_WEIGHTS // sum(model.heads)),
        fitting_tokens(model.heads, services.settings.attention_bytes),
    )
    names = [text.id for text in shown]
    return TextList(
        data=[_view(run, text) for text in shown],
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
        has_more=len(found) > wanted.limit,
        limits=AttentionLimits(
            block_size=model.block_size, max_tokens=most, formats=_FORMATS, metrics=get_args(SortMetric), types=TYPES
        ),
    )


def _view(run: str, text: CapturedText) -> TextView:
    longest = text.longest
    records = [_record(record.manifest, record.stored_tokens, size_of(record.path)) for record in text.records]
    return TextView(
        id=text.id,
        kind="example" if is_example(text.id) else "text",
        begins=longest.manifest["text"][:_BEGIN],
        tokens=longest.stored_tokens,
        checkpoints=_distinct([record.checkpoint for record in records]),
        records=records,
        links=TextLinks(self_=link(f"/attention/{run}/{quote(text.id)}")),
    )


def _record(manifest: dict[str, Any], tokens: int, size_bytes: int) -> RecordView:
    named = {name: manifest[name] for name in ("checkpoint", "step", "sha256", "created_at")}
    return RecordView(**named, tokens=tokens, size_bytes=size_bytes)


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _delete(services: Services, run: str, example: str) -> None:
    Run.open(services.layout.run(run))
    if not delete_text(services.layout, run, example):
        raise TextNotFound(run, example)
