"""Text from a trained run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from model_core.requests import GenerateRequest, GenerateResult
from service.body import JSON, ConfigTree, check, parameters_of, query
from service.deps import Door
from service.generation import LONGEST_QUERY_PROMPT, TEXT, answer
from service.openapi import problems
from service.stream import EVENT_STREAM

router = APIRouter(prefix="/generate", tags=["generate"])

_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": GenerateResult, "content": {JSON: {}, TEXT: _TEXT, EVENT_STREAM: _TEXT}},
    **problems(404, 406, 409, 422, 503),
}
_SHORT = {"prompt": {"maxLength": LONGEST_QUERY_PROMPT}}
_PARAMETERS = [
    {**part, "schema": part["schema"] | _SHORT.get(part["name"], {})} for part in parameters_of(GenerateRequest)
]
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {"$ref": "#/components/schemas/GenerateRequest-Input"},
            "example": {"run": "quickstart", "prompt": "One day", "max_new_tokens": 60, "seed": 1},
        }
    },
}


@router.get(
    "",
    summary="Continue a text",
    response_class=Response,
    responses=_RESPONSES | problems(414),
    openapi_extra={"parameters": _PARAMETERS},
)
async def generate(
    wanted: Annotated[GenerateRequest, query(GenerateRequest, lists=("stop",))], services: Door, request: Request
) -> Response:
    """JSON; only the text with `Accept: text/plain`; piece by piece with `stream=true`."""
    return await answer(services, request, wanted)


@router.post(
    "",
    summary="Continue a text",
    response_class=Response,
    responses=_RESPONSES | problems(400, 413, 415),
    openapi_extra={"requestBody": _BODY},
)
async def generate_from_body(tree: ConfigTree, services: Door, request: Request) -> Response:
    """The same with the parameters in a body, for long prompts."""
    return await answer(services, request, check(GenerateRequest, tree, strict=True))
