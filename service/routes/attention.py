"""Where every head looks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from model_core.config import Name
from model_core.requests import ExampleId
from service.body import JSON, parameters_of, query
from service.deps import Door
from service.openapi import problems
from service.pictures import MEDIA_TYPES, Index, PictureQuery, answer
from service.views.attention import AttentionView

router = APIRouter(prefix="/attention/{run}/{example}", tags=["attention"])

_PICTURES: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()}
_ERRORS = problems(404, 406, 409, 422, 503)
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


@router.get(
    "",
    summary="Picture or manifest of a text",
    response_class=Response,
    responses={
        200: {"model": AttentionView, "content": {JSON: {}, **_PICTURES}},
        **_NOT_MODIFIED,
        **_ERRORS,
    },
    openapi_extra={"parameters": parameters_of(PictureQuery)},
)
async def attention(
    run: Name,
    example: ExampleId,
    wanted: Annotated[PictureQuery, query(PictureQuery)],
    services: Door,
    request: Request,
) -> Response:
    """All layers, or one with `?layer=`, or one head; with `Accept: application/json` the manifest.

    `example` is the number of a test example. Captured the first time it is asked for.
    """
    return await answer(services, request, run, example, wanted)


@router.get(
    "/layer{layer}.{format}",
    summary="Picture of one layer",
    response_class=Response,
    responses={200: {"content": _PICTURES}, **_NOT_MODIFIED, **_ERRORS},
    openapi_extra={"parameters": parameters_of(PictureQuery, leave_out=("layer", "format"))},
)
async def layer(
    run: Name,
    example: ExampleId,
    layer: Index,
    format: Literal["png", "svg", "pdf"],  # noqa: A002 - the suffix of the address
    wanted: Annotated[PictureQuery, query(PictureQuery)],
    services: Door,
    request: Request,
) -> Response:
    """Under the name that the file has on disk."""
    chosen = wanted.model_copy(update={"layer": layer, "format": format})
    return await answer(services, request, run, example, chosen)
