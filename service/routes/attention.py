"""Attention of a text, as pictures and manifests: found on disk, captured once if missing, drawn here.

Every reply is keyed by the checkpoint's hash. A client may name that hash (``checkpoint=sha256=...``); the reply to
such a request never changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from matplotlib import colormaps
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from model_core.attention.pictures.layout import PictureStyle
from model_core.attention.pictures.plot import record_picture
from model_core.attention.record import AttentionRecord, default_max_tokens
from model_core.config import Name
from model_core.errors import CheckpointNotFound
from model_core.schemas import AttentionRequest, CheckpointRef, Count, ExampleId, JsonNumber, TokenCount
from model_core.storage.dataset import EXAMPLES, dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.admission import not_ready
from service.deps import Services, ServicesDep
from service.openapi import problems
from service.protocol.errors import InferenceUnavailable
from service.protocol.negotiation import choose, etag_matches
from service.protocol.parsing import JSON, QueryModel, QueryRoute, validate
from service.schemas import View, checkpoint_warnings, link, warning_headers
from worker.jobs.schemas import Warned
from worker.web.disconnect import while_connected

MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
_FORMATS = {media_type: name for name, media_type in MEDIA_TYPES.items()}
_BY_HASH = re.compile(r"sha256=([0-9a-f]{64})")
_EDITION = 1  # increase it when the same attention is drawn differently
_MAX_DELETED = 5  # times that a record may go while it is drawn
_FOREVER = "private, max-age=31536000, immutable"

Index = Annotated[int, Field(ge=0, le=65_536), JsonNumber]

router = APIRouter(prefix="/attention/{run}/{example}", tags=["attention"], route_class=QueryRoute)

_PICTURES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()}
_ERRORS = problems(404, 406, 409, 422, 503)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


class LayerView(View):
    """One layer of a captured text."""

    layer: int
    n_head: int
    head_dim: int
    png: str = Field(description="name of the picture's file on disk; links.layers has its address")


class AttentionLinks(View):
    """Links of a captured text."""

    self_: str = Field(serialization_alias="self")
    sheet: str
    layers: list[str]
    run: str


class AttentionView(View):
    """What was captured of one text under one checkpoint."""

    object: Literal["attention"] = "attention"
    run: str
    id: str
    checkpoint: str
    step: int
    sha256: str
    text: str
    tokens: list[str]
    truncated_from: int | None = None
    layers: list[LayerView]
    warnings: list[Warned] = Field(default=[])
    links: AttentionLinks

    @classmethod
    def of(cls, manifest: dict[str, Any], warnings: Sequence[Warned] = ()) -> Self:
        """Build the view of a record; its links name the checkpoint by its hash, so what they show never changes.

        Args:
            manifest: Manifest of the record.
            warnings: Warnings about the request.

        Returns:
            The view.
        """
        here = link(f"/attention/{manifest['run']}/{quote(manifest['id'])}")
        keyed = urlencode({"checkpoint": f"sha256={manifest['sha256']}", "max_tokens": len(manifest["tokens"])})
        links = AttentionLinks(
            self_=f"{here}?{keyed}",
            sheet=f"{here}?{keyed}&format=png",
            layers=[f"{here}/{layer['png']}?{keyed}" for layer in manifest["layers"]],
            run=link(f"/runs/{manifest['run']}"),
        )
        shown = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate({**shown, "warnings": [*warnings], "links": links})


class PictureQuery(QueryModel):
    """What to look at, and how it is drawn."""

    checkpoint: CheckpointRef = Field(
        default="best", description="best, final, latest, step=N, a file name or sha256=HASH"
    )
    layer: Index | None = Field(default=None, description="one layer; default: all layers")
    head: Index | None = Field(default=None, description="one head of that layer")
    format: Literal["png", "svg", "pdf"] | None = Field(default=None, description="else what Accept prefers")
    cmap: str = Field(
        default="viridis",
        max_length=50,
        description="a matplotlib colour map",
        json_schema_extra={"enum": [*sorted(colormaps)]},
    )
    dpi: Count = Field(default=150, ge=10, le=600)
    max_tokens: TokenCount | None = Field(default=None, description="default: the run's configuration")


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
    kind = choose(request.headers.get("accept"), _offered(wanted))
    style = PictureStyle(format=_FORMATS.get(kind, "png"), cmap=wanted.cmap, dpi=wanted.dpi)
    text = validate(AttentionRequest, {"run": run, "id": example, "max_tokens": wanted.max_tokens})
    target = await run_in_threadpool(_resolve, services.layout, run, wanted.checkpoint)
    headers = _headers(target.sha256, kind, text, wanted) | warning_headers(target.warnings)
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    for _ in range(_MAX_DELETED):
        record = await _record(services, request, text, target)
        headers = _headers(record.manifest["sha256"], kind, text, wanted) | warning_headers(target.warnings)
        if kind == JSON:
            view = AttentionView.of(record.manifest, target.warnings)
            return JSONResponse(view.model_dump(mode="json"), headers=headers)
        draw = partial(record_picture, record, layer=wanted.layer, head=wanted.head, style=style)
        with contextlib.suppress(FileNotFoundError):  # deleted since it was found
            return Response(await to_thread.run_sync(draw, limiter=services.drawing), media_type=kind, headers=headers)
    raise InferenceUnavailable("the attention was deleted each time that it was drawn")


@dataclass(frozen=True)
class _Target:
    """A checkpoint: its hash, and the file with that hash; None if the file was replaced or deleted."""

    sha256: str
    file: str | None
    warnings: Sequence[Warned] = ()


def _offered(wanted: PictureQuery) -> tuple[str, ...]:
    if wanted.format is not None:
        return (MEDIA_TYPES[wanted.format], JSON)
    return ("image/png", JSON, "image/svg+xml", "application/pdf")


def _resolve(layout: Layout, name: str, wanted: str) -> _Target:
    run = Run.open(layout.run(name))
    by_hash = _BY_HASH.fullmatch(wanted)
    if by_hash is None:
        info = run.resolve(wanted)
        return _Target(info.sha256, info.file, checkpoint_warnings(wanted, info))
    file = next((info.file for info in run.checkpoints() if info.sha256 == by_hash[1]), None)
    return _Target(by_hash[1], file)  # without a file, what was captured before is still served


def _headers(sha256: str, kind: str, text: AttentionRequest, wanted: PictureQuery) -> dict[str, str]:
    key = repr((_EDITION, sha256, kind, text.run, text.id, wanted.model_dump(exclude={"checkpoint", "format"})))
    is_fixed = _BY_HASH.fullmatch(wanted.checkpoint) is not None
    return {
        "ETag": f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"',
        "Vary": "Accept",
        "Cache-Control": _FOREVER if is_fixed else "private, no-cache",
    }


async def _record(services: Services, request: Request, text: AttentionRequest, target: _Target) -> AttentionRecord:
    """Find the record; an inference process captures it the first time."""
    record = await run_in_threadpool(_find, services.layout, text, target.sha256)
    if record is not None:
        return record
    if target.file is None:
        present = await run_in_threadpool(lambda: Run.open(services.layout.run(text.run)).checkpoints())
        raise CheckpointNotFound(text.run, f"sha256={target.sha256}", tuple(info.file for info in present))
    text = await run_in_threadpool(_resolve_request, services.layout, text, target.file)
    body = await while_connected(request, services.hosts.post("/capture", text, target.sha256))
    manifest: Mapping[str, Any] = json.loads(body)
    record = await run_in_threadpool(_find, services.layout, text, str(manifest["sha256"]))
    if record is None:
        raise InferenceUnavailable("the inference process does not share this service's data root")
    return record


def _resolve_request(layout: Layout, text: AttentionRequest, file: str) -> AttentionRequest:
    """Fill in the checkpoint's file and the length; refuse an example without a dataset before a model is loaded."""
    config = Run.open(layout.run(text.run)).config()
    dataset = dataset_of(config, layout)
    if text.id.isdecimal() and not (dataset.directory / EXAMPLES).is_file():
        raise not_ready(dataset, config)
    max_tokens = text.max_tokens or default_max_tokens(config.testing)
    return text.model_copy(update={"checkpoint": file, "max_tokens": max_tokens})


def _find(layout: Layout, text: AttentionRequest, sha256: str) -> AttentionRecord | None:
    return AttentionRecord.find(layout, text.run, text.id, sha256, max_tokens=text.max_tokens)
