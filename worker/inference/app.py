"""HTTP around the engines: `POST /generate`, `POST /capture`, `GET /healthz`.

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

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model_core.attention.capture import capture_example
from model_core.errors import ModelCoreError
from model_core.generation.engine import EngineStopped
from model_core.generation.request import Event, GenerationOutput, TextDelta
from model_core.generation.request import Request as EngineRequest
from model_core.schemas import AttentionRequest, GenerateRequest, GenerateResult
from model_core.storage.dataset import dataset_of
from worker.inference.model_cache import ModelCache, ServedModel
from worker.inference.streams import Lines, Sha256, client_gone, error_body, unless_disconnected
from worker.jobs.authority import is_loopback, parse_authority, shortest

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
    "cuda_oom": 503,
    "inference_busy": 503,
    "inference_unavailable": 503,
    "disk_full": 507,
}  # any other code is a 500

log = logging.getLogger(__name__)

_THREADS = 64  # most of them wait for a model that loads


def create_app(models: ModelCache, *, names: Collection[str] = ()) -> FastAPI:
    """Build the ASGI application.

    Args:
        models: The models that it serves; closed when the application shuts down.
        names: Names of this host that the API uses, beside those of loopback and the address that it connects to.

    Returns:
        The application.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="request"))
        yield
        await asyncio.to_thread(models.close)

    app = FastAPI(title="Headcount inference", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_OnlyForTheApi, names=frozenset(names))
    one_capture = asyncio.Semaphore(1)  # the attention of a long text is large

    @app.post("/generate")
    async def generate(request: GenerateRequest, sha256: Sha256, connection: Request) -> Response:
        generation = await Generation.start(models, request, sha256)
        if request.stream:
            return Lines(_lines(generation), generation.cancel)
        try:
            result = await unless_disconnected(connection, generation.result())
        finally:
            generation.cancel()
        return client_gone() if result is None else Response(result.model_dump_json(), media_type="application/json")

    @app.post("/capture")
    async def capture(request: AttentionRequest, sha256: Sha256, connection: Request) -> Response:
        async def captured() -> dict[str, Any]:
            await one_capture.acquire()
            working = asyncio.ensure_future(asyncio.to_thread(_capture, models, request, sha256))
            working.add_done_callback(lambda done: _release(one_capture, done))
            return await asyncio.shield(working)  # a thread cannot be cancelled, and keeps the semaphore

        manifest = await unless_disconnected(connection, captured())
        return client_gone() if manifest is None else JSONResponse(manifest)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {
            "status": "ok",
            "device": models.device,
            "open_requests": models.open_requests,
            "models": models.info(),
        }

    app.add_exception_handler(ModelCoreError, _model_core_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


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


class Generation:
    """One open request, seen from the event loop. Its events come from the engine's thread through a queue.

    Args:
        request: What to generate.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._served: ServedModel
        self._submitted: EngineRequest

    @classmethod
    async def start(cls, models: ModelCache, request: GenerateRequest, sha256: str) -> Generation:
        """Load the model if necessary and submit the request to its engine.

        Args:
            models: The models of this process.
            request: What to generate; its checkpoint is a file name.
            sha256: Hash of that file, hex.

        Returns:
            The started generation.

        Raises:
            ModelCoreError: Every error that is known before the first token.
        """
        generation = cls(request)
        await asyncio.to_thread(generation._submit, models, sha256)
        return generation

    def cancel(self) -> None:
        """Cancel it within one step; does nothing after its end."""
        self._submitted.cancel()

    async def result(self) -> GenerateResult:
        """Wait for the end.

        Returns:
            The result.

        Raises:
            ModelCoreError: The generation failed.
        """
        async for event in self.events():
            if isinstance(event, GenerateResult):
                return event
        raise AssertionError("events end with a result or an error")

    async def events(self) -> AsyncIterator[TextDelta | GenerateResult]:
        """Iterate over the events as they come.

        Yields:
            Text deltas, and last the result.

        Raises:
            ModelCoreError: The generation failed.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ModelCoreError):
                raise event
            if isinstance(event, tuple):
                for delta in event:
                    yield delta
            else:
                yield self._result_of(event)
                return

    def _submit(self, models: ModelCache, sha256: str) -> None:
        for is_last in (False, True):
            self._served = models.get(self._request.run, self._request.checkpoint, sha256)
            try:
                self._submitted = self._served.engine.submit(self._request, self._request.prompt, self._on_event)
                return
            except EngineStopped:  # the model was evicted in this moment
                if is_last:
                    raise

    def _on_event(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no reader is left
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _result_of(self, output: GenerationOutput) -> GenerateResult:
        info = self._served.loaded.info
        return GenerateResult(
            run=self._served.run,
            checkpoint=info.file,
            step=info.step,
            prompt=self._request.prompt,
            seed=output.seed,
            weights="fp32",
            fingerprint=info.sha256[:12],
            choices=output.choices,
            usage=output.usage,
        )


async def _lines(generation: Generation) -> AsyncIterator[dict[str, Any]]:
    async for event in generation.events():
        if isinstance(event, GenerateResult):
            yield {"result": event.model_dump(mode="json")}
        elif event.text:
            yield {"index": event.index, "text": event.text}


def _capture(models: ModelCache, request: AttentionRequest, sha256: str) -> dict[str, Any]:
    loaded = models.get(request.run, request.checkpoint, sha256).loaded
    dataset = dataset_of(loaded.config, models.layout)
    return capture_example(loaded, request.run, models.layout, request, dataset).manifest


def _release(semaphore: asyncio.Semaphore, done: asyncio.Task[Any]) -> None:
    semaphore.release()
    if not done.cancelled():
        done.exception()  # retrieved, because its reader may be gone


async def _model_core_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ModelCoreError)
    return _reply(error_body(error))


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return _error("malformed_body", "the body is not JSON")
    detail = "; ".join(f"/{'/'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in problems)
    return _error("invalid_parameter", detail)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    return _error("internal_error", f"unexpected error in the inference process: {type(error).__name__}")


def _error(code: str, detail: str) -> Response:
    return _reply({"code": code, "detail": detail})


def _reply(body: dict[str, Any]) -> Response:
    status = STATUS.get(body["code"], 500)
    return JSONResponse(body, status_code=status, headers={"Retry-After": "5"} if status == 503 else None)
