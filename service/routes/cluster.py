"""Workers, their GPUs and the queue, as the workers' heartbeats report them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from pydantic import Field

from service.deps import ServicesDep
from service.job_views import JobView
from service.openapi import problems
from service.protocol.parsing import QueryModel, QueryRoute
from service.schemas import Listed, View
from worker.jobs.schemas import QueueState

router = APIRouter(tags=["cluster"], route_class=QueryRoute)


class QueueQuery(QueryModel):
    """Extent of the queue report."""

    limit: int = Field(default=20, ge=1, le=100, description="number of ready jobs that are listed")


class WorkerGpu(View):
    """A GPU as one worker sees it."""

    index: int
    uuid: str | None = None
    name: str
    memory_bytes: int
    job: str | None = Field(default=None, description="the job of this worker that has it")


class WorkerFacts(View):
    """One worker process."""

    object: Literal["worker"] = "worker"
    id: str
    host: str | None = None
    pid: int | None = None
    slots: int = Field(default=1, description="jobs at once")
    busy: int = Field(default=0, description="of them taken")
    jobs: list[str] = Field(default=[], description="ids of the jobs that it runs")
    gpus: list[WorkerGpu] = Field(default=[])
    memory_bytes: int | None = None
    time: str = Field(description="time of its last heartbeat")


class GpuView(View):
    """One GPU of some host; several workers there may use it in turn."""

    object: Literal["gpu"] = "gpu"
    id: str
    host: str | None
    index: int
    name: str
    memory_bytes: int
    workers: list[str]
    job: str | None = Field(description="the job that has it")


class QueueReport(View):
    """What waits and what runs, in numbers, and the first ready jobs."""

    object: Literal["queue"] = "queue"
    queued: int = Field(description="ready and waiting together")
    ready: int = Field(description="jobs that a worker may take now")
    waiting: int = Field(description="jobs that wait for other jobs")
    running: int
    data: list[JobView] = Field(description="ready jobs in the order of their turn")

    @classmethod
    def of(cls, state: QueueState) -> Self:
        """Build the report.

        Args:
            state: State of the queue, from the store.

        Returns:
            The report.
        """
        jobs = [JobView.of(job) for job in state.jobs]
        counts = {name: getattr(state, name) for name in ("queued", "ready", "waiting", "running")}
        return cls.model_construct(object="queue", **counts, data=jobs)


@router.get("/workers", summary="List the workers", responses=problems(503))
async def workers(services: ServicesDep) -> Listed[WorkerFacts]:
    """Those that are alive, by id, with what they run."""
    found = _parse_workers(await services.ask(services.registry.alive, "workers"))
    return Listed[WorkerFacts].of(found, [worker.id for worker in found], has_more=False)


@router.get("/gpus", summary="List the GPUs", responses=problems(503))
async def gpus(services: ServicesDep) -> Listed[GpuView]:
    """Those of all workers that are alive, with the job that has each."""
    found = _list_gpus(_parse_workers(await services.ask(services.registry.alive, "workers")))
    return Listed[GpuView].of(found, [gpu.id for gpu in found], has_more=False)


@router.get(
    "/queue",
    summary="Get the queue",
    responses=problems(422, 503),
)
async def queue(wanted: Annotated[QueueQuery, Query()], services: ServicesDep) -> QueueReport:
    """How many jobs wait and run, and which will be taken next."""
    return QueueReport.of(await services.ask(services.store.queue, wanted.limit))


def _parse_workers(facts: Iterable[Mapping[str, Any]]) -> list[WorkerFacts]:
    """Validate the heartbeats of workers."""
    return [WorkerFacts.model_validate(one) for one in facts]


def _list_gpus(workers: Iterable[WorkerFacts]) -> list[GpuView]:
    """List each GPU once, even if several workers can use it."""
    seen: dict[str, list[tuple[WorkerFacts, WorkerGpu]]] = {}
    for worker in workers:
        for gpu in worker.gpus:
            seen.setdefault(gpu.uuid or f"{worker.id}/{gpu.index}", []).append((worker, gpu))
    return [_gpu(name, seen[name]) for name in sorted(seen)]


def _gpu(name: str, seen: list[tuple[WorkerFacts, WorkerGpu]]) -> GpuView:
    worker, gpu = seen[0]
    return GpuView(
        id=name,
        host=worker.host,
        index=gpu.index,
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        workers=[worker.id for worker, _ in seen],
        job=next((gpu.job for _, gpu in seen if gpu.job is not None), None),
    )
