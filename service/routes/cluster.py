"""Workers, their GPUs and the queue, as the workers' heartbeats report them, and the events of all jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query
from pydantic import BeforeValidator, Field, StringConstraints
from starlette.responses import StreamingResponse

from service.deps import ServicesDep
from service.job_views import JobView
from service.live_events import Interest, LiveType
from service.openapi import problems
from service.protocol.negotiation import choose
from service.protocol.parsing import QueryModel, QueryRoute
from service.protocol.server_sent_events import EVENT_STREAM, event_stream_response
from service.schemas import Listed, View
from worker.jobs.schemas import QueueState
from worker.jobs.spec import JOB_ID

router = APIRouter(tags=["cluster"], route_class=QueryRoute)

_JobId = Annotated[str, StringConstraints(pattern=JOB_ID)]
_STREAM: dict[str, Any] = {EVENT_STREAM: {"schema": {"type": "string"}}}


class QueueQuery(QueryModel):
    """Extent of the queue report."""

    limit: int = Field(default=20, ge=1, le=100, description="number of ready jobs that are listed")


def _split(value: Any) -> Any:
    """Split a parameter at its commas; FastAPI reads a parameter of several values as a list of texts."""
    texts = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(",".join(texts).split(","))) if isinstance(texts, list) else value


class LiveQuery(QueryModel):
    """Which events of which jobs."""

    job: Annotated[tuple[_JobId, ...] | None, BeforeValidator(_split)] = Field(
        default=None,
        description="comma-separated ids; default: all jobs",
        json_schema_extra={"explode": False, "example": ["job_00000000000000000000000000000000"]},
    )
    types: Annotated[tuple[LiveType, ...], BeforeValidator(_split)] = Field(
        default=("status", "progress", "queue"),
        description="comma-separated types",
        json_schema_extra={"explode": False, "example": ["status", "progress"]},
    )
    after: str | None = Field(
        default=None, max_length=100, description="id of the last event that is known, in place of Last-Event-ID"
    )


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


@router.get(
    "/events",
    summary="Follow all jobs",
    response_class=StreamingResponse,
    responses={200: {"content": _STREAM}, **problems(406, 422, 503)},
)
async def live_events(
    wanted: Annotated[LiveQuery, Query()],
    services: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> StreamingResponse:
    """Server-sent events of all jobs: `status`, `progress` (at most one a second of a job) and `queue`.

    A connection begins with the changes of status since Last-Event-ID, if that is still known, and a snapshot:
    the status of the newest jobs and of those that run or come next, their progress, and the queue.
    """
    choose(accept, (EVENT_STREAM,))
    interest = Interest(frozenset(wanted.types), frozenset(wanted.job) if wanted.job is not None else None)
    first = await services.live.look(interest, last_event_id or wanted.after)
    return event_stream_response(services.live.stream(interest, first))


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
