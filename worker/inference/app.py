"""HTTP around the engines: `POST /generate`, `GET /healthz`, and those of `attention_routes` and `token_routes`.

Only the API calls it: a request holds what a client sent, with the file name that its checkpoint resolved to, and that
file's sha256. An error is a status and ``{code, detail}``. A closed connection cancels its generation within one step,
streaming or not. Models load in threads, so the event loop never blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from model_core.attention.quota import AttentionQuota
from model_core.errors import ModelCoreError
from model_core.schemas import InferenceRequest
from worker.inference.attention_routes import attention_routes
from worker.inference.generation import Generation
from worker.inference.model_cache import ModelCache
from worker.inference.streams import (
    Call,
    Lines,
    Waker,
    error_body,
    json_response,
    read_call,
)
from worker.inference.token_routes import token_routes
from worker.inference.tokenizer_cache import TokenizerCache
from worker.web.authority import is_loopback, parse_authority, shortest
from worker.web.disconnect import while_connected

STATUS: Mapping[str, int] = {
    "malformed_body": 400,
    "forbidden": 403,
    "run_not_found": 404,
    "checkpoint_not_found": 404,
    "example_not_found": 404,
    "dataset_not_found": 404,
    "checkpoint_not_ready": 409,
    "checkpoint_damaged": 409,
    "dataset_not_ready": 409,
    "misdirected_host": 421,
    "attention_too_large": 422,
    "does_not_fit": 422,
    "invalid_config": 422,
    "invalid_data": 422,
    "invalid_parameter": 422,
    "not_available": 422,
    "prompt_too_long": 422,
    "inference_busy": 429,
    "cuda_oom": 503,
    "inference_unavailable": 503,
    "deadline_exceeded": 504,
    "disk_full": 507,
}  # any other code is a 500

log = logging.getLogger(__name__)

_RETRY_S = 5
_CLIENT_GONE = 499
_THREADS = 64  # most of them wait for a model that loads


def create_app(models: ModelCache, *, names: Collection[str] = (), quota: AttentionQuota | None = None) -> Starlette:
    """Build the ASGI application.

    Args:
        models: The models that it serves; closed when the application shuts down.
        names: Names of this host that the API uses, beside those of loopback and the address that it connects to.
        quota: Makes room for records of attention; None leaves that to the disk.

    Returns:
        The application.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="request"))
        yield
        await asyncio.to_thread(models.close)

    return Starlette(
        routes=_routes(models, quota),
        middleware=[Middleware(_OnlyForTheApi, names=frozenset(names))],
        exception_handlers={
            ModelCoreError: _model_core_error,
            ClientDisconnect: _client_gone,
            Exception: _unexpected_error,
        },
        lifespan=lifespan,
    )


def _routes(models: ModelCache, quota: AttentionQuota | None) -> list[Route]:
    waker, tokenizers = Waker(), TokenizerCache(models.layout)

    async def generate(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[InferenceRequest])
        generation = Generation(request, models.settings.deadline_s, waker)
        if request.stream:
            begun = await while_connected(connection, generation.begin(models, sha256))
            return Lines(begun.lines(), begun.cancel)
        result = await while_connected(connection, generation.complete(models, sha256))
        return json_response(result)

    async def healthz(_: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "device": models.device,
                "open_requests": models.open_requests,
                "totals": models.totals(),
                "models": models.info(),
            }
        )

    return [
        Route("/generate", generate, methods=["POST"]),
        Route("/healthz", healthz),
        *attention_routes(models, tokenizers, quota),
        *token_routes(models, tokenizers, waker),
    ]


class _OnlyForTheApi:
    """ASGI middleware that refuses what web pages send, because there is no login: foreign names, and every browser."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope, dict(scope["headers"])) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response | None:
        host, server = parse_authority(headers.get(b"host", b"")), scope.get("server")
        arrived = shortest(server[0]) if server else None
        if host is None or not (host.name in self._names or host.name == arrived or is_loopback(host.name)):
            return _error("misdirected_host", "the Host header has no name of this inference process")
        if b"origin" in headers or b"sec-fetch-site" in headers:
            return _error("forbidden", "only the API sends requests here, and no browser")
        return None


async def _model_core_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ModelCoreError)
    return _reply(error_body(error), getattr(error, "retry_after_s", _RETRY_S))


async def _client_gone(_: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)  # nobody reads it


async def _unexpected_error(_: Request, error: Exception) -> Response:
    return _error("internal_error", f"unexpected error in the inference process: {type(error).__name__}")


def _error(code: str, detail: str) -> Response:
    return _reply({"code": code, "detail": detail})


def _reply(body: dict[str, Any], retry_after_s: int = _RETRY_S) -> Response:
    status = STATUS.get(body["code"], 500)
    headers = {"Retry-After": str(retry_after_s)} if status in {429, 503} else None
    return JSONResponse(body, status_code=status, headers=headers)
