"""Text from a trained run, as JSON, plain text or server-sent events.

An inference process generates it and its JSON is passed on as it is. When a client disconnects, so does the API from
the inference process, which cancels the generation within a step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator, Field, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from model_core.errors import ModelCoreError
from model_core.schemas import (
    MAX_PROMPT_CHARACTERS,
    GenerateRequest,
    GenerateResult,
    InferenceRequest,
    LogitBias,
    SamplingParams,
)
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.events import ascii_line
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.deps import Services, ServicesDep, services_of
from service.host_connection import HostLost
from service.inference_client import Reply, client_of
from service.openapi import problems
from service.protocol.errors import InferenceUnavailable, Upstream, UriTooLong, problem_document, request_id_of
from service.protocol.lines import split_lines_async
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, QueryModel, QueryRoute, read_tree, validate
from service.protocol.server_sent_events import EVENT_STREAM, event_stream_response, frame
from service.schemas import checkpoint_warnings, warning_headers
from worker.jobs.schemas import Warned
from worker.web.disconnect import while_connected

log = logging.getLogger(__name__)

TEXT = "text/plain"
MAX_QUERY_PROMPT = 2000  # characters

_BIASES = r"^[0-9]{1,8}:-?[0-9]{1,2}(\.[0-9]+)?(,[0-9]{1,8}:-?[0-9]{1,2}(\.[0-9]+)?)*$"
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": GenerateResult, "content": {JSON: {}, TEXT: _TEXT, EVENT_STREAM: _TEXT}},
    **problems(404, 406, 409, 422, 429, 503, 504),
}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {
            "schema": {"$ref": "#/components/schemas/GenerateRequest-Input"},
            "example": {"run": "quickstart", "prompt": "One day", "max_new_tokens": 60, "seed": 1},
        }
    },
}

router = APIRouter(prefix="/generate", tags=["generate"], route_class=QueryRoute)


def _read_bias(value: Any) -> Any:
    """Read `ID:BIAS,ID:BIAS` as the object that it is in a body."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition(":") for pair in value.split(",")]
    biases = {token: bias for token, _, bias in pairs}
    if len(biases) < len(pairs):
        raise ValueError("an id occurs twice")
    return biases


class GenerateQuery(QueryModel, GenerateRequest):
    """A generation request in a query string, which holds a shorter prompt."""

    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS, json_schema_extra={"maxLength": MAX_QUERY_PROMPT})
    logit_bias: Annotated[
        LogitBias,
        BeforeValidator(_read_bias),
        WithJsonSchema({"type": "string", "pattern": _BIASES}, mode="validation"),
    ] = Field(default_factory=dict)


@router.get(
    "",
    summary="Generate text",
    response_class=Response,
    responses=_RESPONSES | problems(414),
)
async def generate(
    wanted: Annotated[GenerateQuery, Query()],
    services: ServicesDep,
    request: Request,
) -> Response:
    """JSON; only the text with `Accept: text/plain`; piece by piece with `stream=true`."""
    return await answer(services, request, wanted)


@router.post(
    "",
    summary="Generate text",
    response_class=Response,
    responses=_RESPONSES | problems(400, 413, 415),
    openapi_extra={"requestBody": _BODY},
)
async def generate_from_body(request: Request) -> Response:
    """The same with the parameters in a body, for long prompts."""
    tree = await read_tree(request, GenerateRequest)
    return await answer(services_of(request), request, validate(GenerateRequest, tree, strict=True))


async def answer(services: Services, request: Request, wanted: GenerateRequest) -> Response:
    """Resolve the checkpoint, have an inference process generate, and reply in the form that the client accepts.

    Args:
        services: Services of this process.
        request: The HTTP request: its method, its Accept header and its connection.
        wanted: The validated parameters.

    Returns:
        JSON, plain text, or a stream of server-sent events.

    Raises:
        ModelCoreError: Every error that is known before the first byte of the reply.
    """
    if request.method == "GET" and len(wanted.prompt) > MAX_QUERY_PROMPT:
        raise UriTooLong(f"a prompt in a query string has at most {MAX_QUERY_PROMPT:,} characters; POST takes more")
    kind = choose(request.headers.get("accept"), (JSON, TEXT, EVENT_STREAM))
    is_stream = wanted.stream or kind == EVENT_STREAM
    info = await run_in_threadpool(_resolve, services.layout, wanted)
    asked = InferenceRequest(
        **{name: getattr(wanted, name) for name in SamplingParams.model_fields},
        run=wanted.run,
        checkpoint=info.file,
        prompts=(wanted.prompt,),
        stream=is_stream,
        timeout_s=wanted.timeout_s,
        client=client_of(request),
    )
    warnings = checkpoint_warnings(wanted.checkpoint, info)
    if is_stream:
        response = await while_connected(request, services.hosts.open("/generate", asked, info.sha256))
        frames = _frames(response, wanted.prompt, request_id_of(request.scope), warnings)
        return event_stream_response(frames, warning_headers(warnings))
    body = await while_connected(request, services.hosts.post("/generate", asked, info.sha256))
    result = _native(json.loads(body), wanted.prompt, warnings)
    headers = {"Vary": "Accept", "Cache-Control": "no-store" if wanted.seed is None else "private, no-cache"}
    headers |= warning_headers([Warned.model_validate(warning) for warning in result["warnings"]])
    if kind == TEXT:
        return PlainTextResponse("\n\n".join(choice["text"] for choice in result["choices"]), headers=headers)
    compact = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    return Response(compact.encode(), media_type=JSON, headers=headers)


def _resolve(layout: Layout, wanted: GenerateRequest) -> CheckpointInfo:
    return Run.open(layout.run(wanted.run)).resolve(wanted.checkpoint)


def _native(result: dict[str, Any], prompt: str, warnings: Sequence[Warned]) -> dict[str, Any]:
    """The `GenerateResult` of an `InferenceResult`."""
    every = [*(warning.model_dump() for warning in warnings), *result["warnings"]]
    found = {**result, "prompt": prompt, "warnings": every}
    if any("logprobs" in choice for choice in result["choices"]):
        found["tokens_text"] = result["prompts"][0]["pieces"]
    return {name: found[name] for name in GenerateResult.model_fields if name in found}


async def _frames(response: Reply, prompt: str, request_id: str, warnings: Sequence[Warned]) -> AsyncIterator[bytes]:
    """Turn the inference process's lines into events; the status is sent, so an error is an event too."""
    error: ModelCoreError = InferenceUnavailable("the generation broke off")
    try:
        async for line in split_lines_async(response.aiter_bytes()):
            part = json.loads(line)
            if "result" in part:
                yield frame(_native(part["result"], prompt, warnings), event="end")
                return
            if "error" in part:
                error = Upstream.of(part["error"])
                break
            if pieces := b"".join(map(_piece, part["choices"])):
                yield pieces
    except HostLost as broken:
        log.warning("inference host went away while it streamed reason=%s", broken)
    finally:
        await response.aclose()
    yield frame(problem_document(error, request_id), event="error")


def _piece(choice: dict[str, Any]) -> bytes:
    """The event with what a choice gained; empty where it has neither text nor log probabilities."""
    gained = {name: choice[name] for name in ("index", "text", "logprobs") if name in choice}
    return f"data: {ascii_line(gained)}\n\n".encode() if gained["text"] or gained.get("logprobs") else b""
