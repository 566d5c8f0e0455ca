"""The Celery application of a train worker: ``celery -A worker.tasks worker``.

Its one task claims a job and supervises it in a child process; the worker itself never loads torch.
"""

from __future__ import annotations

import functools
import signal
from types import FrameType
from typing import Any

from celery.signals import celeryd_after_setup, worker_ready, worker_shutdown

from worker.gpus import GpuPool, find_gpus
from worker.janitor import Janitor
from worker.jobs.celery_app import RUN_NEXT, make_app, wake
from worker.jobs.redis_client import Registry, connect
from worker.jobs.settings import WorkerSettings
from worker.jobs.worker_store import WorkerStore
from worker.runner import Runner

_settings = WorkerSettings()
_redis = connect(_settings.redis_url, for_api=False)
_store = WorkerStore(_redis, _settings)
_gpus = GpuPool(find_gpus())
_runner = Runner(_store, _settings, _gpus, slots=_settings.slots or max(1, len(_gpus.gpus)))

app = make_app(_settings.redis_url, for_api=False)
app.conf.worker_concurrency = _runner.slots


@app.task(name=RUN_NEXT)  # type: ignore[untyped-decorator]
def run_next() -> None:
    """Run the first ready job that fits this worker, if there is one."""
    _runner.run_next()


# Celery keeps weak references to handlers, so they are functions of the module.


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _listen_to_own_queue(sender: str, instance: Any, **_: Any) -> None:
    instance.app.amqp.queues.select_add(_own_queue(sender))
    _runner.slots = instance.concurrency


@worker_ready.connect  # type: ignore[untyped-decorator]
def _begin(sender: Any, **_: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, functools.partial(_stop, signal.getsignal(number)))
    _janitor(sender.hostname).start()


def _stop(celery: Any, number: int, frame: FrameType | None) -> None:
    """Record a signal, then call Celery's handler.

    Celery's own signal `worker_shutting_down` takes a lock: a second process signal that arrives meanwhile, as when
    the launcher is killed, would deadlock with the first.
    """
    _runner.stopping.request(signal.Signals(number).name)
    celery(number, frame)


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(sender: Any, **_: Any) -> None:
    _janitor(sender.hostname).leave()


@functools.cache
def _janitor(nodename: str) -> Janitor:
    registry = Registry(_redis)
    wake_self = functools.partial(wake, _settings.redis_url, queue=_own_queue(nodename))
    return Janitor(_store, registry, _runner, _settings, wake_self)


def _own_queue(nodename: str) -> str:
    return f"wake.{nodename}"
