"""The registry of live processes."""

import pytest

from tests.polling import eventually
from worker.jobs.redis_client import Registry


@pytest.fixture
def registry(redis_url, connected):
    return Registry(connected(redis_url, for_api=True))


def test_a_registered_process_is_alive_until_it_is_deregistered(registry):
    registry.register("workers", "b", {"slots": 2}, ttl_s=5)
    registry.register("workers", "a", {"slots": 1}, ttl_s=5)
    registry.register("inference", "c", {}, ttl_s=5)
    assert [(info["id"], info["slots"]) for info in registry.alive("workers")] == [("a", 1), ("b", 2)]
    registry.deregister("workers", "a")
    assert [info["id"] for info in registry.alive("workers")] == ["b"]


def test_a_registration_without_heartbeats_expires(registry):
    registry.register("workers", "a", {}, ttl_s=0.05)
    eventually(lambda: registry.alive("workers") == [])
