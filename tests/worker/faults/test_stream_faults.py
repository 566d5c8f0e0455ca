"""A client that follows a job through failures of every part gets each event once."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping

import httpx
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


class Follower:
    """Takes a stream up again after the last event it got, whatever ended it.

    Attributes:
        told: Every numbered event, as it came.
        cuts: How often the client cut the connection.
        statuses: Every change of status.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.told: list[dict] = []
        self.cuts = 0
        self.statuses: list[str] = []

    def follow(self, cut_at: set[int], on: Mapping[int, Callable[[], object]]) -> None:
        """Read until the job is over.

        Args:
            cut_at: Numbers of events behind which the client hangs up.
            on: What to do when an event of that number has come, with the connection open.
        """
        while "succeeded" not in self.statuses[-1:]:
            with contextlib.suppress(httpx.TransportError):
                self._read(cut_at, on)
            time.sleep(0.2)  # before it connects again

    def _read(self, cut_at: set[int], on: Mapping[int, Callable[[], object]]) -> None:
        last = str(self.told[-1]["seq"] if self.told else 0)
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        with httpx.stream("GET", self._url, headers=headers, timeout=30, trust_env=False) as reply:
            kind = ""
            for line in reply.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "status":
                    self.statuses.append(json.loads(value)["status"])
                elif name == "data" and reply.is_success:
                    self.told.append(json.loads(value))
                    number = self.told[-1]["seq"]
                    on.get(number, lambda: None)()
                    if number in cut_at:
                        self.cuts += 1
                        return


def test_client_gets_each_event_once_and_in_order_whatever_breaks(hurried, seen):
    server, site = hurried()
    site.start_api()
    worker = site.start_worker()
    job_id = site.submit("streamed", steps=120, step_s=0.05)
    follower = Follower(f"{site.url}/jobs/{job_id}/events")

    def lose_the_worker() -> None:
        worker.kill()
        site.start_worker()

    def restart_redis() -> None:
        server.kill()
        time.sleep(1)  # and Redis is away for a while
        server.start()

    follower.follow(cut_at={9, 30, 51, 90, 130}, on={40: lose_the_worker, 100: restart_redis})

    log = site.event_log("streamed")
    log.check(120)
    assert len(log.attempts) == 2
    assert follower.told == log.events
    assert follower.cuts == 5
    seen("stream cut 5 times, worker and Redis killed", f"{len(follower.told)} events, each once and in order")
