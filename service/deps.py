"""Dependencies of routes: one `Services` per process, and calls to Redis that block no other request."""

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
from service.body_cache import BodyCache
from service.change_listener import ChangeListener
from service.head_history import HistoryCache
from service.inference_client import Hosts
from service.live_events import LiveEvents
from service.metrics import SeriesCache
from service.settings import ServiceSettings
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry, connect
from worker.jobs.spec import JobSpec
from worker.jobs.store import JobStore

_P = ParamSpec("_P")
_T = TypeVar("_T")
_REDIS_THREADS = 32  # as many as the pool has connections
_MAX_REPLY_BYTES = 64 << 20
_CHECKING_THREADS = 2  # more would wait for the interpreter lock


class ThreadedStore:
    """Runs blocking calls of the job store on threads of its own, so a frozen Redis delays no request for files.

    Args:
        deadline_s: Longest wait for one call.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._threads = CapacityLimiter(_REDIS_THREADS)

    async def __call__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a call on a thread.

        Args:
            call: A method of the store or the registry.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The result of the call.

        Raises:
            QueueUnavailable: The call took longer than the deadline.
        """
        with anyio.move_on_after(self._deadline_s):
            return await to_thread.run_sync(
                partial(call, *args, **kwargs), abandon_on_cancel=True, limiter=self._threads
            )
        raise QueueUnavailable("no answer in time")


@dataclass(frozen=True)
class Services:
    """Objects that live as long as the process.

    Attributes:
        settings: Settings of this machine.
        layout: Paths of the data directory.
        store: The job store.
        registry: Workers and inference processes.
        ask: Calls store and registry on threads, with a deadline.
        async_store: The most frequent commands, batched on the event loop.
        checking: Bounds the large configurations that are checked at the same time.
        admission: Checks submissions against the disk, in batches.
        wakeups: Wakes workers, at a limited rate.
        changes: Notifies followers of changed jobs.
        live: Events of all jobs, for open streams.
        hosts: Inference processes, reached over HTTP.
        drawing: Bounds the pictures that are drawn at the same time.
        series_cache: Metrics that were read from event files.
        history_cache: Histories of heads that were read from event files.
        reply_cache: Replies that were made of attention records.
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
    live: LiveEvents
    hosts: Hosts
    drawing: CapacityLimiter
    series_cache: SeriesCache
    history_cache: HistoryCache
    reply_cache: BodyCache
    _redis: redis.Redis

    @classmethod
    def of(cls, settings: ServiceSettings) -> Services:
        """Build the services without connecting.

        Args:
            settings: Settings of this machine.

        Returns:
            The services; each connects on its first use.
        """
        client = connect(settings.redis_url, for_api=True)
        registry, ask = Registry(client), ThreadedStore(settings.deadline_s)
        async_store, changes = AsyncStore(settings.redis_url, settings.deadline_s), ChangeListener(settings.redis_url)
        return cls(
            settings=settings,
            layout=settings.layout,
            store=JobStore(client, settings),
            registry=registry,
            ask=ask,
            async_store=async_store,
            checking=CapacityLimiter(_CHECKING_THREADS),
            admission=Batcher(partial(_prepare_submissions, settings.layout, CapacityLimiter(1))),
            wakeups=WakeupNotifier(settings.redis_url),
            changes=changes,
            live=LiveEvents(async_store, changes, settings.ping_s),
            hosts=Hosts(partial(ask, registry.alive, "inference"), settings),
            drawing=CapacityLimiter(settings.drawing_threads),
            series_cache=SeriesCache(),
            history_cache=HistoryCache(),
            reply_cache=BodyCache(_MAX_REPLY_BYTES),
            _redis=client,
        )

    async def close(self) -> None:
        """End event streams and close connections."""
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
    """Find the services of the process without a FastAPI dependency, whose cost matters in the busiest routes.

    Args:
        request: Any request.

    Returns:
        The services.
    """
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
