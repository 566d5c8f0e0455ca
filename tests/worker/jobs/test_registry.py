import time

import pytest

from worker.jobs.redis_client import Registry


@pytest.fixture
def registry(redis_url, connected):
    return Registry(connected(redis_url, for_api=True))


def test_who_announced_is_alive_until_withdrawn(registry):
    registry.announce("workers", "b", {"slots": 2}, ttl_s=5)
    registry.announce("workers", "a", {"slots": 1}, ttl_s=5)
    registry.announce("inference", "c", {}, ttl_s=5)
    assert [(fact["id"], fact["slots"]) for fact in registry.alive("workers")] == [("a", 1), ("b", 2)]
    registry.withdraw("workers", "a")
    assert [fact["id"] for fact in registry.alive("workers")] == ["b"]


def test_who_falls_silent_is_gone(registry):
    registry.announce("workers", "a", {}, ttl_s=0.05)
    time.sleep(0.1)
    assert registry.alive("workers") == []
