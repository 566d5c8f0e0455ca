"""Liveness, readiness, version and the entry point of the API.

Readiness checks all dependencies concurrently.
"""

from __future__ import annotations

import asyncio
import os
from typing import Literal

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from model_core.errors import DiskFull, ModelCoreError
from model_core.storage.files import is_disk_full
from service.deps import Services, ServicesDep
from service.openapi import problems
from service.protocol.errors import NotReady
from service.schemas import View, link

router = APIRouter(tags=["service"])

_LINKS = ("docs", "jobs", "queue", "workers", "gpus", "datasets", "runs", "configs", "healthz", "readyz")


class PresetView(View):
    """A configuration that ships."""

    object: Literal["config"] = "config"
    name: str
    links: dict[str, str]


class Check(View):
    """One thing that the service needs."""

    ok: bool
    detail: str


class Health(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(View):
    """Everything that the service needs is there."""

    status: Literal["ready"] = "ready"
    checks: dict[str, Check]


class Welcome(View):
    """Entry points of the API."""

    name: Literal["headcount"] = "headcount"
    version: str
    links: dict[str, str]


@router.get("/healthz", summary="Check that the process runs")
async def healthz() -> Health:
    """Liveness of this process alone."""
    return Health()


@router.get("/readyz", summary="Check that the service is ready", responses=problems(503))
async def readyz(services: ServicesDep) -> Readiness:
    """Redis, the data root, a worker and an inference process; 503 names what is missing."""
    return await readiness(services)


@router.get("/", summary="Get the entry points")
async def welcome(request: Request) -> Welcome:
    """Links to the rest; a browser gets the page instead."""
    links = {name: link(f"/{name}") for name in _LINKS} | {"openapi": link("/openapi.json")}
    return Welcome(version=request.app.version, links=links)


async def readiness(services: Services) -> Readiness:
    """Check all dependencies of the service at the same time.

    Args:
        services: Services of the process.

    Returns:
        The checks, all passed.

    Raises:
        NotReady: A check failed; the error has all checks.
    """
    names = ("data", "redis", "worker", "inference")
    found = await asyncio.gather(
        run_in_threadpool(_data, services),
        _redis(services),
        _alive(services, "workers", "no worker has announced itself"),
        _alive(services, "inference", "no inference process has announced itself"),
    )
    checks = dict(zip(names, found, strict=True))
    if not all(check.ok for check in found):
        raise NotReady({name: check.model_dump() for name, check in checks.items()})
    return Readiness(checks=checks)


def _data(services: Services) -> Check:
    root = services.layout.exp.parent
    if root.is_dir() and is_disk_full(root):
        return Check(ok=False, detail=f"{DiskFull.code}: no space is left in the data root")
    is_usable = root.is_dir() and os.access(root, os.R_OK | os.W_OK | os.X_OK)
    return Check(ok=is_usable, detail="readable and writable" if is_usable else "the data root is missing or read-only")


async def _redis(services: Services) -> Check:
    try:
        await services.ask(services.store.time_s)
    except ModelCoreError as error:
        return Check(ok=False, detail=str(error))
    return Check(ok=True, detail="answers")


async def _alive(services: Services, kind: str, none: str) -> Check:
    try:
        found = await services.ask(services.registry.alive, "inference" if kind == "inference" else "workers")
    except ModelCoreError as error:
        return Check(ok=False, detail=str(error))
    return Check(ok=bool(found), detail=f"{len(found)} alive" if found else none)
