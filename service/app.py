"""The HTTP service: `uvicorn service.app:app`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI

from service import openapi
from service.deps import Services
from service.protocol import errors, middleware
from service.protocol.middleware import RequestMiddleware
from service.routes import (
    attention,
    checkpoints,
    cluster,
    configs,
    datasets,
    exports,
    generate,
    health,
    job_outputs,
    jobs,
    runs,
)
from service.settings import ServiceSettings

log = logging.getLogger(__name__)

_ABOUT = "Train GPT-2 models whose layers have different numbers of attention heads, and see where every head looks."


def create_app(settings: ServiceSettings) -> FastAPI:
    """Build the application; nothing is connected before it starts.

    Args:
        settings: What the machine decides.
    """
    services = Services.of(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with contextlib.suppress(OSError):  # /readyz says it when the data root cannot be used
            settings.data.mkdir(parents=True, exist_ok=True)
        tasks = [
            asyncio.create_task(services.changes.listen(), name="changes"),
            asyncio.create_task(services.wakeups.run(), name="wakeups"),
        ]
        with _noticing_signals(services.changes.close):
            yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await services.close()

    app = FastAPI(
        title="Headcount",
        version=_version(),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    app.add_middleware(
        RequestMiddleware, max_body_bytes=settings.max_body_bytes, max_upload_bytes=settings.max_upload_bytes
    )
    middleware.redact_access_log()
    errors.install(app)
    openapi.install(app)
    about_runs = (runs, checkpoints, exports, generate, attention)
    for module in (jobs, cluster, job_outputs, datasets, *about_runs, configs, health):
        app.include_router(module.router)
    return app


@contextlib.contextmanager
def _noticing_signals(leave: Callable[[], None]) -> Iterator[None]:
    """End event streams as soon as the process is asked to leave: the server waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def notice(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(leave)
        server = before[signal.Signals(number)]
        if callable(server):
            server(number, frame)

    for number in before:
        signal.signal(number, notice)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _version() -> str:
    try:
        return version("headcount")
    except PackageNotFoundError:
        return "0"


app = create_app(ServiceSettings())
