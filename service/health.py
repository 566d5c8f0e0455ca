"""Whether everything that the service needs is there, each asked at the same time as the others."""

from __future__ import annotations

import asyncio
import os

from starlette.concurrency import run_in_threadpool

from model_core.errors import ModelCoreError
from service.deps import Services
from service.errors import NotReady
from service.views.about import Check, Readiness


async def readiness(services: Services) -> Readiness:
    """Check everything.

    Raises:
        NotReady: Saying what is missing.
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
