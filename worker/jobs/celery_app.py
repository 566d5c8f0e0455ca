"""Celery carries wake-ups and nothing else: a message says "look at the queue", never which job.

So a lost wake-up costs a second and a duplicate costs nothing; the record in Redis is the truth.
"""

from __future__ import annotations

import functools
import logging
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery
from kombu.exceptions import KombuError, OperationalError

from worker.jobs.redis_client import PREFIX

log = logging.getLogger(__name__)

RUN_NEXT = "headcount.run_next"
SHARED_QUEUE = "wake"

_WORKER: dict[str, Any] = {
    "visibility_timeout": 3600,
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
}
_API: dict[str, Any] = {
    "socket_timeout": 1,
    "socket_connect_timeout": 0.5,
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
}


def broker_url(redis_url: str) -> str:
    """The address as Celery spells it: ``unix:///path?db=0`` is its ``redis+socket:///path?virtual_host=0``."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"


def make_app(redis_url: str, *, for_api: bool) -> Celery:
    """Build the Celery application of a worker, or of a publisher that must not wait."""
    app = Celery("headcount", broker=broker_url(redis_url), backend=None, set_as_current=not for_api)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=SHARED_QUEUE,
        worker_pool="threads",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"global_keyprefix": f"{PREFIX}celery:", **(_API if for_api else _WORKER)},
    )
    if for_api:
        app.conf.broker_connection_timeout = 1
    return app


@functools.cache
def _publisher(redis_url: str) -> Celery:
    return make_app(redis_url, for_api=True)


def wake(redis_url: str, *, queue: str = SHARED_QUEUE) -> bool:
    """Ask a worker to look at the queue, as a courtesy: workers also look by themselves, each second.

    Returns:
        Whether the wake-up was sent. Never raises when Redis is away.
    """
    try:
        _publisher(redis_url).send_task(RUN_NEXT, queue=queue, retry=False, expires=60)
    except (OperationalError, KombuError, redis.RedisError, OSError) as error:
        log.warning("wake-up not sent queue=%s reason=%s", queue, type(error).__name__)
        return False
    return True
