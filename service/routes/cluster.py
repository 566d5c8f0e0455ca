"""Workers, their GPUs, and the queue they take jobs from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from model_core.config import Config
from service.body import parameters_of, query
from service.cluster import GpuView, QueueReport, WorkerFacts, gpus_of, workers_of
from service.deps import Door
from service.openapi import problems
from service.views.base import Listed

router = APIRouter(tags=["cluster"])


class QueueQuery(Config):
    """How much of the queue."""

    limit: int = Field(default=20, ge=1, le=100, description="so many of the ready jobs")


@router.get("/workers", summary="List the workers", responses=problems(503))
async def workers(services: Door) -> Listed[WorkerFacts]:
    """Those that are alive, by id, with what they run."""
    found = workers_of(await services.ask(services.registry.alive, "workers"))
    return Listed[WorkerFacts].of(found, [worker.id for worker in found], has_more=False)


@router.get("/gpus", summary="List the GPUs", responses=problems(503))
async def gpus(services: Door) -> Listed[GpuView]:
    """Those of all workers that are alive, with the job that has each."""
    found = gpus_of(workers_of(await services.ask(services.registry.alive, "workers")))
    return Listed[GpuView].of(found, [gpu.id for gpu in found], has_more=False)


@router.get(
    "/queue",
    summary="Look at the queue",
    responses=problems(422, 503),
    openapi_extra={"parameters": parameters_of(QueueQuery)},
)
async def queue(wanted: Annotated[QueueQuery, query(QueueQuery)], services: Door) -> QueueReport:
    """How many jobs wait and run, and which will be taken next."""
    return QueueReport.of(await services.ask(services.store.queue, wanted.limit))
