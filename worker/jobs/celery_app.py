"""The Celery application. Its messages are wake-ups only: a worker then claims the oldest job that fits.

So a lost message delays a job by at most a second, and a duplicate changes nothing: the job's record in Redis is the
truth.
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
    """Translate a Redis address to Celery's spelling.

    Args:
        redis_url: ``redis://host:port/db`` or ``unix:///path?db=0``.

    Returns:
        The same, or ``redis+socket:///path?virtual_host=0`` for a Unix socket.
    """
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"


def make_app(redis_url: str, *, for_api: bool) -> Celery:
    """Build a Celery application.

    Args:
        redis_url: Address of the broker.
        for_api: Build a publisher with short timeouts and one retry; otherwise the application of a worker.

    Returns:
        The application, not connected yet.
    """
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


def wake(redis_url: str, *, queue: str = SHARED_QUEUE) -> bool:
    """Wake a worker, so that it claims a job at once; without wake-ups workers look at the queue each second.

    Args:
        redis_url: Address of the broker.
        queue: Celery queue; every worker consumes the shared queue and one of its own.

    Returns:
        Whether the wake-up was sent. An unreachable Redis is logged, not raised.
    """
    try:
        _publisher(redis_url).send_task(RUN_NEXT, queue=queue, retry=False, expires=60)
    except (OperationalError, KombuError, redis.RedisError, OSError) as error:
        log.warning("wake-up not sent queue=%s reason=%s", queue, type(error).__name__)
        return False
    return True


@functools.cache
def _publisher(redis_url: str) -> Celery:
    return make_app(redis_url, for_api=True)
