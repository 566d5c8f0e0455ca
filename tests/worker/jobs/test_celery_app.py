"""Celery settings and wake-ups."""

import time

import pytest

from worker.jobs.celery_app import broker_url, wake
from worker.jobs.redis_client import connect


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("unix:///run/x/redis.sock?db=3", "redis+socket:///run/x/redis.sock?virtual_host=3"),
        ("unix:///run/x/redis.sock", "redis+socket:///run/x/redis.sock?virtual_host=0"),
        ("redis://:secret@redis:6379/0", "redis://:secret@redis:6379/0"),
    ],
)
def test_address_is_spelled_as_celery_wants(redis_url, broker):
    assert broker_url(redis_url) == broker


def test_wake_up_reaches_the_shared_queue(redis_url):
    assert wake(redis_url)
    with connect(redis_url, for_api=True) as client:
        assert client.llen("headcount:celery:wake") == 1
        assert client.keys() == client.keys("headcount:*")


@pytest.mark.alone
def test_wake_up_never_raises_nor_waits(tmp_path):
    began = time.monotonic()
    assert not wake(f"unix://{tmp_path}/nothing.sock")
    assert time.monotonic() - began < 1.5
