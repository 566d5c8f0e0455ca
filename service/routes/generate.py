"""Text from a trained run, as JSON, plain text or server-sent events.

An inference process generates it. A client that closes its connection closes the one behind it, which ends the
generation within a step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from model_core.schemas import GenerateRequest, GenerateResult
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.deps import Services, ServicesDep
from service.event_stream import EVENT_STREAM, event_stream_response, frame
from service.inference_client import while_connected
from service.openapi import problems
from service.protocol.errors import InferenceUnavailable, Upstream, UriTooLong, problem_document, request_id_of
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, ConfigTree, parameters_of, query_model, validate

log = logging.getLogger(__name__)

TEXT = "text/plain"
LONGEST_QUERY_PROMPT = 2000


async def answer(services: Services, request: Request, wanted: GenerateRequest) -> Response:
    """Serve a generation in the form that the client accepts.

    Args:
        services: Where to ask.
        request: For its headers, and to stop when the client goes.
        wanted: What to write.

    Raises:
        ModelCoreError: Whatever stands against it, before the first byte.
    """
    if request.method == "GET" and len(wanted.prompt) > LONGEST_QUERY_PROMPT:
        raise UriTooLong(
            f"a prompt in an address has at most {LONGEST_QUERY_PROMPT:,} characters; POST takes longer ones"
        )
    kind = choose(request.headers.get("accept"), (JSON, TEXT, EVENT_STREAM))
    is_stream = wanted.stream or kind == EVENT_STREAM
    info = await run_in_threadpool(_checkpoint, services.layout, wanted)
    payload = wanted.model_copy(update={"checkpoint": info.file, "stream": is_stream}).model_dump(mode="json")
    if is_stream:
        begin = services.hosts.open("/generate", payload, run=wanted.run, checkpoint=info.file)
        return event_stream_response(_frames(await while_connected(request, begin), request_id_of(request.scope)))
    ask = services.hosts.ask("/generate", payload, run=wanted.run, checkpoint=info.file)
    result = GenerateResult.model_validate(await while_connected(request, ask))
    headers = {"Vary": "Accept", "Cache-Control": "no-store" if wanted.seed is None else "private, no-cache"}
    if kind == TEXT:
        return PlainTextResponse("\n\n".join(choice.text for choice in result.choices), headers=headers)
    return Response(result.model_dump_json(), media_type=JSON, headers=headers)


def _checkpoint(layout: Layout, wanted: GenerateRequest) -> CheckpointInfo:
    return Run.open(layout.run(wanted.run)).resolve(wanted.checkpoint)


async def _frames(response: httpx.Response, request_id: str) -> AsyncIterator[bytes]:
    """Lines of the inference process as events; the status is sent, so an error is an event too."""
    error: Upstream | InferenceUnavailable = InferenceUnavailable("the generation broke off")
    try:
        async for line in response.aiter_lines():
            part = json.loads(line)
            if "result" in part:
                yield frame(part["result"], event="end")
                return
            if "error" in part:
                error = Upstream(part["error"]["code"], part["error"]["detail"])
                break
            yield frame(part)
    except httpx.TransportError as broken:
        log.warning("inference host went away while it streamed reason=%s", type(broken).__name__)
    finally:
        await response.aclose()
    yield frame(problem_document(error, request_id), event="error")


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
    wanted: Annotated[GenerateRequest, query_model(GenerateRequest, lists=("stop",))],
    services: ServicesDep,
    request: Request,
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
async def generate_from_body(tree: ConfigTree, services: ServicesDep, request: Request) -> Response:
    """The same with the parameters in a body, for long prompts."""
    return await answer(services, request, validate(GenerateRequest, tree, strict=True))
