"""A Redis and a data root that a test may break."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.worker.harness import Site


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def child(request: pytest.FixtureRequest) -> str:
    """Who does the work: a child without torch, and where a test has time the trainer."""
    return str(request.param)


@pytest.fixture
def hurried(make_site: Callable[..., Site], start_redis: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A Redis and a site of a test's own, where leases run out soon: ``server, site = hurried(child="real")``."""
    made: list[tuple[Any, Site]] = []

    def make(*, addresses: tuple[str, ...] = ("127.0.0.1",), **options: Any) -> tuple[Any, Site]:
        server = start_redis(addresses=addresses)
        made.append((server, make_site(server.url, **{"lease_s": 3.0, "beat_s": 0.5, "janitor_s": 0.5, **options})))
        return made[-1]

    yield make
    for server, site in made:
        site.kill()
        server.kill()
