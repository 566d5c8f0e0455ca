"""Whether the process lives, whether it is complete, and where to begin."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import RedirectResponse, Response

from service.deps import Door
from service.health import readiness
from service.negotiate import choose
from service.openapi import problems
from service.views.about import Health, Readiness, Welcome

router = APIRouter(tags=["service"])

_LINKS = ("docs", "jobs", "queue", "workers", "gpus", "datasets", "runs", "configs", "healthz", "readyz")


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Asks nobody else."""
    return Health()


@router.get("/readyz", summary="Is the service complete?", responses=problems(503))
async def readyz(services: Door) -> Readiness:
    """Redis, the data root, a worker and an inference process; 503 says what is missing."""
    return await readiness(services)


@router.get("/", summary="Where to begin", response_model=Welcome, responses={307: {"description": "To /docs"}})
async def welcome(request: Request, accept: Annotated[str | None, Header()] = None) -> Welcome | Response:
    """A browser is sent to /docs; a program gets the links."""
    if choose(accept, ("application/json", "text/html")) == "text/html":
        return RedirectResponse("/docs")
    links = {name: f"/{name}" for name in _LINKS} | {"openapi": "/openapi.json"}
    return Welcome(version=request.app.version, links=links)
