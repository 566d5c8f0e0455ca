"""Tokens of a text, the text of tokens, and how likely texts are: what an inference process knows of a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from model_core.errors import ModelCoreError
from model_core.score_schemas import (
    DetokenizeRequest,
    DetokenizeResult,
    InferenceScoreRequest,
    ScoreRequest,
    ScoreResult,
    TokenizeRequest,
    TokenizeResult,
)
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.events import ascii_line
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.deps import Services, ServicesDep
from service.host_connection import HostLost
from service.inference_client import Reply, client_of
from service.openapi import json_body, problems
from service.protocol.errors import InferenceUnavailable, Upstream, problem_document, request_id_of
from service.protocol.lines import split_lines_async
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, QueryModel, QueryRoute, read_json_object, validate
from service.schemas import checkpoint_warnings, warning_headers
from worker.jobs.schemas import Warned
from worker.web.disconnect import while_connected

log = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
_LONG = frozenset({"texts", "pairs", "tokens"})  # keys whose values may be many
_ERRORS = problems(400, 404, 406, 409, 413, 415, 422, 429, 503, 504)

_Request = TypeVar("_Request", TokenizeRequest, DetokenizeRequest, ScoreRequest)

router = APIRouter(tags=["tokens"], route_class=QueryRoute)


class ScoreQuery(QueryModel):
    """Form of the reply."""

    format: Literal["json", "ndjson"] | None = None


@router.post(
    "/tokenize",
    summary="Get the tokens of a text",
    response_class=Response,
    responses={200: {"model": TokenizeResult}, **_ERRORS},
    openapi_extra={"requestBody": json_body(TokenizeRequest, {"run": "quickstart", "text": "One day"})},
)
async def tokenize(services: ServicesDep, request: Request) -> Response:
    r"""Ids, pieces and byte offsets. A piece that is no whole character is named by its bytes, `bytes:\xe2\x80`."""
    return await _answer(services, request, await _body(request, TokenizeRequest))


@router.post(
    "/detokenize",
    summary="Get the text of tokens",
    response_class=Response,
    responses={200: {"model": DetokenizeResult}, **_ERRORS},
    openapi_extra={"requestBody": json_body(DetokenizeRequest, {"run": "quickstart", "tokens": [1, 2, 3]})},
)
async def detokenize(services: ServicesDep, request: Request) -> Response:
    """`whole` is false where the bytes are not UTF-8, which U+FFFD replaces in the text."""
    return await _answer(services, request, await _body(request, DetokenizeRequest))


@router.post(
    "/score",
    summary="Get log-likelihoods of texts, or verdicts on pairs",
    response_class=Response,
    responses={200: {"model": ScoreResult, "content": {JSON: {}, NDJSON: {"schema": {"type": "string"}}}}, **_ERRORS},
    openapi_extra={
        "requestBody": json_body(
            ScoreRequest,
            {"run": "quickstart", "pairs": [{"good": "The cats sleep.", "bad": "The cats sleeps."}], "bos": "eot"},
        )
    },
)
async def score(wanted: Annotated[ScoreQuery, Query()], services: ServicesDep, request: Request) -> Response:
    """Sums in nats. `?format=ndjson` sends each result as a line when it and those before it are there."""
    offered = {"json": (JSON,), "ndjson": (NDJSON,)}.get(wanted.format or "", (JSON, NDJSON))
    kind = choose(request.headers.get("accept"), offered)
    asked = await _body(request, ScoreRequest)
    target = await run_in_threadpool(_Target.of, services.layout, asked)
    resolved = InferenceScoreRequest(
        **dict(asked) | {"checkpoint": target.info.file},
        max_tokens=services.settings.max_score_tokens,
        stream=kind == NDJSON,
        client=client_of(request),
    )
    if kind == NDJSON:
        response = await while_connected(request, services.hosts.open("/score", resolved, target.info.sha256))
        lines = _lines(response, request_id_of(request.scope), target.warnings)
        return StreamingResponse(lines, media_type=NDJSON, headers=_headers(target.warnings))
    return await _passed_on(services, request, "/score", resolved, target)


class _Target:
    """A resolved checkpoint and what to warn of."""

    def __init__(self, info: CheckpointInfo, warnings: Sequence[Warned]) -> None:
        self.info, self.warnings = info, warnings

    @classmethod
    def of(cls, layout: Layout, asked: TokenizeRequest | DetokenizeRequest | ScoreRequest) -> _Target:
        """Resolve the reference of a request."""
        info = Run.open(layout.run(asked.run)).resolve(asked.checkpoint)
        return cls(info, checkpoint_warnings(asked.checkpoint, info))


async def _body(request: Request, model: type[_Request]) -> _Request:
    tree = await read_json_object(request, uncounted=_LONG)
    return await run_in_threadpool(validate, model, tree, strict=True)


async def _answer(services: Services, request: Request, asked: TokenizeRequest | DetokenizeRequest) -> Response:
    target = await run_in_threadpool(_Target.of, services.layout, asked)
    resolved = asked.model_copy(update={"checkpoint": target.info.file})
    return await _passed_on(services, request, request.url.path, resolved, target)


async def _passed_on(
    services: Services,
    request: Request,
    path: str,
    resolved: TokenizeRequest | DetokenizeRequest | InferenceScoreRequest,
    target: _Target,
) -> Response:
    """Reply with what the inference process says, and with the warnings about the checkpoint."""
    body = await while_connected(request, services.hosts.post(path, resolved, target.info.sha256))
    if target.warnings:
        body = json.dumps(_with_warnings(json.loads(body), target.warnings)).encode()
    return Response(body, media_type=JSON, headers=_headers(target.warnings))


def _headers(warnings: Sequence[Warned]) -> dict[str, str]:
    return {"Cache-Control": "private, no-cache", **warning_headers(warnings)}


def _with_warnings(result: dict[str, Any], warnings: Sequence[Warned]) -> dict[str, Any]:
    return {**result, "warnings": [*(warning.model_dump() for warning in warnings), *result["warnings"]]}


async def _lines(response: Reply, request_id: str, warnings: Sequence[Warned]) -> AsyncIterator[str]:
    """Number the results; the status is sent, so an error is a line too."""
    error: ModelCoreError = InferenceUnavailable("the inference process broke off")
    index = 0
    try:
        async for line in split_lines_async(response.aiter_bytes()):
            part = json.loads(line)
            if "result" in part:
                yield ascii_line({"end": _with_warnings(part["result"], warnings)}) + "\n"
                return
            if "error" in part:
                error = Upstream.of(part["error"])
                break
            yield "".join(ascii_line({"index": at, **item}) + "\n" for at, item in enumerate(part["results"], index))
            index += len(part["results"])
    except HostLost as broken:
        log.warning("inference host went away while it streamed reason=%s", broken)
    finally:
        await response.aclose()
    yield ascii_line({"error": problem_document(error, request_id)}) + "\n"
