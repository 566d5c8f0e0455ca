"""Places that a test may break, and the table of what was seen when it did."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.worker.site import Site

_SEEN = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Note a figure for the table that stands at the end of the test run: ``seen("disk full", "...")``."""
    return lambda fault, what: request.config.stash.setdefault(_SEEN, []).append((fault, what))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_SEEN, [])
    if rows:
        terminalreporter.section("faults: what was seen")
        width = max(len(fault) for fault, _ in rows)
        terminalreporter.write_line("\n".join(f"{fault:<{width}}  {what}" for fault, what in rows))


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
