"""HTTP around the engines: `POST /generate`, `POST /capture`, `GET /healthz`.

Only the API of Headcount calls it. Errors are a status and ``{code, detail}``. A connection that closes ends its
generation within one step, whether it streams or waits for the whole reply; models load in threads, so the loop
never stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from model_core.attention.capture import capture_example
from model_core.errors import ModelCoreError
from model_core.generation import scheduler
from model_core.generation.engine import EngineStopped
from model_core.schemas import AttentionRequest, GenerateRequest, GenerateResult
from model_core.storage.dataset import dataset_of
from worker.inference.model_cache import Models, ServedModel

STATUS: Mapping[str, int] = {
    "malformed_body": 400,
    "run_not_found": 404,
    "checkpoint_not_found": 404,
    "example_not_found": 404,
    "dataset_not_found": 404,
    "checkpoint_not_ready": 409,
    "checkpoint_damaged": 409,
    "dataset_not_ready": 409,
    "attention_too_large": 422,
    "does_not_fit": 422,
    "invalid_config": 422,
    "invalid_data": 422,
    "invalid_parameter": 422,
    "not_available": 422,
    "prompt_too_long": 422,
    "cuda_oom": 503,
    "inference_unavailable": 503,
    "disk_full": 507,
}  # any other code is a 500


log = logging.getLogger(__name__)

_THREADS = 64  # most of them wait, for a model that loads
_CLIENT_GONE = 499

T = TypeVar("T")


def create_app(models: Models) -> FastAPI:
    """The application around a set of models."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="request"))
        yield
        await asyncio.to_thread(models.close)

    app = FastAPI(title="Headcount inference", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    one_capture = asyncio.Semaphore(1)  # weights of a long text are large

    @app.post("/generate")
    async def generate(wanted: GenerateRequest, request: Request) -> Response:
        generation = await Generation.start(models, wanted)
        if wanted.stream:
            return _Lines(generation)
        try:
            result = await _unless_gone(request, generation.result())
        finally:
            generation.cancel()
        return _gone() if result is None else Response(result.model_dump_json(), media_type="application/json")

    @app.post("/capture")
    async def capture(wanted: AttentionRequest, request: Request) -> Response:
        async def captured() -> dict[str, Any]:
            await one_capture.acquire()
            working = asyncio.ensure_future(asyncio.to_thread(_capture, models, wanted))
            working.add_done_callback(lambda done: _release(one_capture, done))
            return await asyncio.shield(working)  # a thread goes on when nobody waits, and keeps its place

        manifest = await _unless_gone(request, captured())
        return _gone() if manifest is None else JSONResponse(manifest)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {
            "status": "ok",
            "device": models.device,
            "open_requests": models.open_requests,
            "models": models.info(),
        }

    app.add_exception_handler(ModelCoreError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_body)
    app.add_exception_handler(Exception, _refuse_unexpected)
    return app


class Generation:
    """One request in work, seen from the event loop."""

    def __init__(self, wanted: GenerateRequest) -> None:
        self._wanted = wanted
        self._events: asyncio.Queue[scheduler.TextDelta | scheduler.GenerationOutput | ModelCoreError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._served: ServedModel
        self._request: scheduler.Request

    @classmethod
    async def start(cls, models: Models, wanted: GenerateRequest) -> Generation:
        """Load the model if need be and put the request in line.

        Raises:
            ModelCoreError: Whatever can be known before the first token.
        """
        generation = cls(wanted)
        await asyncio.to_thread(generation._submit, models)
        return generation

    def cancel(self) -> None:
        """End it within one step; harmless after its end."""
        self._request.cancel()

    async def result(self) -> GenerateResult:
        """Wait for the end."""
        async for event in self.events():
            if isinstance(event, GenerateResult):
                return event
        raise AssertionError("events end with a result or an error")

    async def events(self) -> AsyncIterator[scheduler.TextDelta | GenerateResult]:
        """Pieces, and last the result.

        Raises:
            ModelCoreError: What ended it before its time.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, ModelCoreError):
                raise event
            if isinstance(event, scheduler.TextDelta):
                yield event
            else:
                yield self._reply(event)
                return

    def _submit(self, models: Models) -> None:
        for last in (False, True):
            self._served = models.get(self._wanted.run, self._wanted.checkpoint)
            try:
                self._request = self._served.engine.submit(self._wanted, self._hear)
                return
            except EngineStopped:  # it made room for another model in this moment
                if last:
                    raise

    def _hear(self, event: scheduler.TextDelta | scheduler.GenerationOutput | ModelCoreError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _reply(self, completion: scheduler.GenerationOutput) -> GenerateResult:
        info = self._served.loaded.info
        return GenerateResult(
            run=self._served.run,
            checkpoint=info.file,
            step=info.step,
            prompt=self._wanted.prompt,
            seed=completion.seed,
            choices=completion.choices,
            usage=completion.usage,
        )


class _Lines(StreamingResponse):
    """A generation as lines of JSON; ends it when the connection closes, wherever that is noticed."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(_lines(generation), media_type="application/x-ndjson")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _lines(generation: Generation) -> AsyncIterator[str]:
    try:
        async for event in generation.events():
            if isinstance(event, GenerateResult):
                yield json.dumps({"result": event.model_dump(mode="json")}, ensure_ascii=False) + "\n"
            else:
                yield json.dumps({"index": event.index, "text": event.text}, ensure_ascii=False) + "\n"
    except ModelCoreError as error:  # the status is sent: what remains is a line
        yield json.dumps({"error": {"code": error.code, "detail": str(error)}}, ensure_ascii=False) + "\n"


def _capture(models: Models, wanted: AttentionRequest) -> dict[str, Any]:
    loaded = models.get(wanted.run, wanted.checkpoint).loaded
    dataset = dataset_of(loaded.config, models.layout)
    return capture_example(loaded, wanted.run, models.layout, wanted, dataset).manifest


def _release(place: asyncio.Semaphore, done: asyncio.Task[Any]) -> None:
    place.release()
    if not done.cancelled():
        done.exception()  # nobody may be left to hear it


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Wait for work, unless the client closes the connection first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone() -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, ModelCoreError)
    return _error(error.code, str(error), hint=error.hint)


async def _refuse_body(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return _error("malformed_body", "the body is not JSON")
    said = (f"/{'/'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in problems)
    return _error("invalid_parameter", "; ".join(said))


async def _refuse_unexpected(_: Request, error: Exception) -> Response:
    return _error("internal_error", f"the inference process met an error it did not expect: {type(error).__name__}")


def _error(code: str, detail: str, hint: str | None = None) -> Response:
    status = STATUS.get(code, 500)
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse(
        {"code": code, "detail": detail, **({"hint": hint} if hint else {})}, status_code=status, headers=headers
    )
