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
from service.page.page_server import add_page
from service.protocol import errors, middleware
from service.protocol.access import AccessPolicy
from service.protocol.addresses import AddressResolver
from service.protocol.middleware import RequestMiddleware
from service.routes import (
    attention,
    attention_numbers,
    attention_texts,
    checkpoints,
    cluster,
    compare,
    configs,
    datasets,
    exports,
    generate,
    health,
    job_outputs,
    jobs,
    runs,
    tokens,
)
from service.routes.heads import ablations, distributions, history
from service.routes.v1 import completions, models
from service.settings import ServiceSettings

log = logging.getLogger(__name__)

_ABOUT = "Train GPT-2 models whose layers have different numbers of attention heads, and see where every head looks."

_ROUTES = (  # in the order of /docs
    jobs, cluster, job_outputs, datasets, runs, checkpoints, exports, generate, completions, models,
    tokens, attention_texts, attention, attention_numbers, history, ablations, distributions,
    compare, configs, health,
)  # fmt: skip
_BUSIEST = (generate, completions)  # matched first: a router before them takes 0.1 ms of each request


def create_app(settings: ServiceSettings) -> FastAPI:
    """Build the application. It opens no connection before its first request.

    Args:
        settings: Settings of this machine.

    Returns:
        The application, with its `Services` in `app.state.services`.
    """
    services = Services.of(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with contextlib.suppress(OSError):  # /readyz reports an unusable data root
            settings.data.mkdir(parents=True, exist_ok=True)
        tasks = [
            asyncio.create_task(services.changes.listen(), name="changes"),
            asyncio.create_task(services.wakeups.run(), name="wakeups"),
            asyncio.create_task(services.live.run(), name="live"),
        ]
        with _on_exit_signal(services.changes.close):
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
        openapi_url=None,
        openapi_tags=[{"name": tag} for tag in dict.fromkeys(tag for module in _ROUTES for tag in module.router.tags)],
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.services = services
    errors.add_exception_handlers(app)
    add_page(app)
    app.add_middleware(  # around the page, which thereby gets resolved addresses
        RequestMiddleware,
        addresses=AddressResolver(settings.root_path, settings.forwarded_allow_ips),
        access=AccessPolicy(settings.host_names),
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
    )
    middleware.redact_access_log()
    openapi.add_documentation(app)
    for module in dict.fromkeys((*_BUSIEST, *_ROUTES)):
        app.include_router(module.router)
    return app


@contextlib.contextmanager
def _on_exit_signal(close_streams: Callable[[], None]) -> Iterator[None]:
    """End event streams on SIGINT and SIGTERM, because uvicorn's shutdown waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(close_streams)
        uvicorn_handler = before[signal.Signals(number)]
        if callable(uvicorn_handler):
            uvicorn_handler(number, frame)

    for number in before:
        signal.signal(number, handle)
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
