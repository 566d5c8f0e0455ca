"""What routes are handed: one `Services` for the process, and the ways to wait without blocking others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ParamSpec, TypeVar

import anyio
import redis
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request

from model_core.storage.files import Layout
from service.admission import PreparedSubmission, prepare_submissions
from service.async_store import AsyncStore, Batcher, WakeupNotifier
from service.change_listener import ChangeListener
from service.inference_client import Hosts
from service.metrics import SeriesCache
from service.settings import ServiceSettings
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry, connect
from worker.jobs.spec import JobSpec
from worker.jobs.store import JobStore

_P = ParamSpec("_P")
_T = TypeVar("_T")
_REDIS_THREADS = 32  # as many as the pool has connections
_CHECKING_THREADS = 2  # more would only wait for the same interpreter


class ThreadedStore:
    """Asks the job store on threads of its own, so that a frozen Redis holds up nobody who only needs the disk."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._threads = CapacityLimiter(_REDIS_THREADS)

    async def __call__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make one call.

        Raises:
            QueueUnavailable: No answer in time.
        """
        with anyio.move_on_after(self._deadline_s):
            return await to_thread.run_sync(
                partial(call, *args, **kwargs), abandon_on_cancel=True, limiter=self._threads
            )
        raise QueueUnavailable("no answer in time")


@dataclass(frozen=True)
class Services:
    """Everything that lives as long as the process.

    Attributes:
        settings: Settings of this machine.
        layout: Paths of the data directory.
        store: The job store.
        registry: Workers and inference processes.
        ask: Calls the two above on threads, with a deadline.
        async_store: The most frequent commands, batched on the event loop.
        checking: Bounds the large configurations that are checked at the same time.
        admission: Checks submissions against the disk, in batches.
        wakeups: Wakes workers, at a limited rate.
        changes: Notifies followers of changed jobs.
        hosts: Inference processes, reached over HTTP.
        drawing: Bounds the pictures that are drawn at the same time.
        series_cache: Event files that were read for their metrics.
    """

    settings: ServiceSettings
    layout: Layout
    store: JobStore
    registry: Registry
    ask: ThreadedStore
    async_store: AsyncStore
    checking: CapacityLimiter
    admission: Batcher[JobSpec, PreparedSubmission]
    wakeups: WakeupNotifier
    changes: ChangeListener
    hosts: Hosts
    drawing: CapacityLimiter
    series_cache: SeriesCache
    _redis: redis.Redis

    @classmethod
    def of(cls, settings: ServiceSettings) -> Services:
        """Build them; nothing is connected yet."""
        client = connect(settings.redis_url, for_api=True)
        registry, ask = Registry(client), ThreadedStore(settings.deadline_s)
        return cls(
            settings=settings,
            layout=settings.layout,
            store=JobStore(client, settings),
            registry=registry,
            ask=ask,
            async_store=AsyncStore(settings.redis_url, settings.deadline_s),
            checking=CapacityLimiter(_CHECKING_THREADS),
            admission=Batcher(partial(_prepare_submissions, settings.layout, CapacityLimiter(1))),
            wakeups=WakeupNotifier(settings.redis_url),
            changes=ChangeListener(settings.redis_url),
            hosts=Hosts(partial(ask, registry.alive, "inference")),
            drawing=CapacityLimiter(settings.drawing_threads),
            series_cache=SeriesCache(),
            _redis=client,
        )

    async def close(self) -> None:
        """Leave: streams end, connections close."""
        self.changes.close()
        await self.hosts.close()
        await self.admission.close()
        await self.async_store.close()
        self._redis.connection_pool.disconnect()


async def _prepare_submissions(
    layout: Layout, limiter: CapacityLimiter, specs: Sequence[JobSpec]
) -> list[PreparedSubmission | Exception]:
    return await to_thread.run_sync(prepare_submissions, layout, specs, limiter=limiter)


def services_of(request: Request) -> Services:
    """The process' services, without the price of a dependency: for what is asked most often."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
