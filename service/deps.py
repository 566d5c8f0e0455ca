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
from service.admission import Order, orders_of
from service.async_store import Ringer, Together, Wire
from service.change_listener import Live
from service.inference_client import Hosts
from service.metrics import Curves
from service.settings import ServiceSettings
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry, connect
from worker.jobs.spec import JobSpec
from worker.jobs.store import JobStore

_P = ParamSpec("_P")
_T = TypeVar("_T")
_REDIS_THREADS = 32  # as many as the pool has connections
_CHECKING_THREADS = 2  # more would only wait for the same interpreter


class Asker:
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
        settings: What the machine decides.
        layout: Where things lie.
        store: The jobs.
        registry: Workers and inference processes.
        ask: The way to call the two above.
        wire: The short way, for what is asked most often.
        checking: Bounds the large configurations that are checked at the same time.
        orders: Looks at the disk for what is asked for.
        ringer: Wakes workers.
        live: Who hears of changes.
        hosts: Inference processes, reached over HTTP.
        drawing: Bounds the pictures that are drawn at the same time.
        curves: Event files that were read for their metrics.
    """

    settings: ServiceSettings
    layout: Layout
    store: JobStore
    registry: Registry
    ask: Asker
    wire: Wire
    checking: CapacityLimiter
    orders: Together[JobSpec, Order]
    ringer: Ringer
    live: Live
    hosts: Hosts
    drawing: CapacityLimiter
    curves: Curves
    _redis: redis.Redis

    @classmethod
    def of(cls, settings: ServiceSettings) -> Services:
        """Build them; nothing is connected yet."""
        client = connect(settings.redis_url, for_api=True)
        registry, ask = Registry(client), Asker(settings.deadline_s)
        return cls(
            settings=settings,
            layout=settings.layout,
            store=JobStore(client, settings),
            registry=registry,
            ask=ask,
            wire=Wire(settings.redis_url, settings.deadline_s),
            checking=CapacityLimiter(_CHECKING_THREADS),
            orders=Together(partial(_orders, settings.layout, CapacityLimiter(1))),
            ringer=Ringer(settings.redis_url),
            live=Live(settings.redis_url),
            hosts=Hosts(partial(ask, registry.alive, "inference")),
            drawing=CapacityLimiter(settings.drawing_threads),
            curves=Curves(),
            _redis=client,
        )

    async def close(self) -> None:
        """Leave: streams end, connections close."""
        self.live.close()
        await self.hosts.close()
        await self.orders.close()
        await self.wire.close()
        self._redis.connection_pool.disconnect()


async def _orders(layout: Layout, limiter: CapacityLimiter, specs: Sequence[JobSpec]) -> list[Order | Exception]:
    return await to_thread.run_sync(orders_of, layout, specs, limiter=limiter)


def services_of(request: Request) -> Services:
    """The process' services, without the price of a dependency: for what is asked most often."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_of(request)


Door = Annotated[Services, Depends(_services)]
