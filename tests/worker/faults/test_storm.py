"""Forty trainings while something is killed every five seconds: no job is lost, and no number differs.

``HEADCOUNT_STORM_SEED`` sets the seed; without it a random one is used, which the table at the end contains.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import yaml

from tests.polling import eventually, seconds_until
from tests.process import is_over
from tests.worker.harness import Site

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1500)]

JOBS, WORKERS = 40, 3
STORM_S, EVERY_S, CALM_S = 120.0, 5.0, 600.0
TRAINING = {"steps": 100, "step_s": 0.03, "changes": {"evaluation": {"checkpoint_every": 10}}}
RUNS = [f"storm-{number:02d}" for number in range(JOBS)]


class Storm:
    """Kills a worker, a child, the API or Redis, and starts again what it killed.

    Attributes:
        blows: What was hit so far.
    """

    def __init__(self, site: Site, server: Any, seed: int) -> None:
        self._site, self._server, self._random = site, server, random.Random(seed)
        self._workers = [site.start_worker() for _ in range(WORKERS)]
        self._api = site.start_api()
        self.blows: Counter[str] = Counter()

    def rage(self, until: float) -> None:
        """Strike every so many seconds."""
        strike_at = time.monotonic()
        while (strike_at := strike_at + EVERY_S) < until:
            time.sleep(max(0.0, strike_at - time.monotonic()))
            blow = self._random.choice((self._hit_a_worker, self._hit_a_child, self._hit_the_api, self._hit_redis))
            self.blows[blow()] += 1

    def _hit_a_worker(self) -> str:
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM))
        place = self._random.randrange(WORKERS)
        self._workers[place].send_signal(number)
        self._workers[place] = self._site.start_worker()
        return f"worker {number.name}"

    def _hit_a_child(self) -> str:
        number = self._random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM))
        children = [child for child in self._site.children() if not is_over(child)]
        if not children:
            return "no child there"
        self._random.choice(children).send_signal(number)
        return f"child {number.name}"

    def _hit_the_api(self) -> str:
        self._api.kill()
        self._api.wait()
        self._api = self._site.start_api()
        return "API SIGKILL"

    def _hit_redis(self) -> str:
        self._server.kill()
        time.sleep(self._random.uniform(0, 2))
        self._server.start()
        return "Redis SIGKILL"


class Submitter(threading.Thread):
    """A client that submits every job, one after another, and repeats what was not answered.

    Attributes:
        jobs: Id by run.
    """

    def __init__(self, site: Site, over_s: float) -> None:
        super().__init__(daemon=True)
        self._site, self._pause_s = site, over_s / JOBS
        self.jobs: dict[str, str] = {}

    def run(self) -> None:
        for run in RUNS:
            eventually(lambda run=run: self._submitted(run), CALM_S)
            time.sleep(self._pause_s)

    def _submitted(self, run: str) -> bool:
        body, headers = self._site.tree(run, **TRAINING), {"Idempotency-Key": run}
        try:
            reply = httpx.post(f"{self._site.url}/jobs", json=body, headers=headers, timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        assert reply.is_success, reply.text
        self.jobs[run] = reply.json()["id"]
        return True


@pytest.fixture(scope="module")
def seed():
    return int(os.environ.get("HEADCOUNT_STORM_SEED") or random.randrange(2**32))


@pytest.fixture
def straight(make_site):
    """The same training by hand, with nothing in its way."""
    site = make_site("redis://127.0.0.1:1/0", child="real")
    file = site.settings.data / "straight.yaml"
    file.write_text(yaml.safe_dump(site.tree("straight", **TRAINING)))
    by_hand = [sys.executable, "-m", "model_core.train", "--config", str(file), "--data-root", str(site.settings.data)]
    subprocess.run(by_hand, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return site.event_log("straight")


def test_no_job_of_a_storm_is_lost_or_differs(hurried, straight, seed, seen):
    seen("storm", f"seed {seed}; HEADCOUNT_STORM_SEED chooses one")
    server, site = hurried(child="real", lease_s=4.0, beat_s=1.0, crash_budget=1000)
    storm, submitter = Storm(site, server, seed), Submitter(site, over_s=STORM_S / 2)
    began = time.monotonic()
    submitter.start()

    storm.rage(began + STORM_S)
    submitter.join()
    seconds = seconds_until(lambda: _over(site, submitter.jobs), CALM_S)

    jobs = {run: site.job(job_id) for run, job_id in submitter.jobs.items()}
    assert {run: job.status for run, job in jobs.items()} == dict.fromkeys(RUNS, "succeeded")
    logs = {run: site.event_log(run) for run in RUNS}
    for log in logs.values():
        log.check(TRAINING["steps"])
    assert [run for run in RUNS if logs[run].bits() != straight.bits()] == []
    validated = straight.bits("validation", "val_loss")
    assert [run for run in RUNS if logs[run].bits("validation", "val_loss") != validated] == []
    eventually(lambda: not site.children())

    attempts = sum(len(log.attempts) for log in logs.values())
    resumed = sum(len(log.resumed) for log in logs.values())
    again = sum(len(log.steps) - TRAINING["steps"] for log in logs.values())
    hits = ", ".join(f"{what} {times}" for what, times in sorted(storm.blows.items()))
    seen("storm", hits)
    seen("storm", f"{JOBS} of {JOBS} succeeded in {attempts} attempts, {resumed} resumed, calm after {seconds:.0f} s")
    seen("storm", f"{again} of {JOBS * TRAINING['steps']} steps taken again, 0 bits differ")


def _over(site: Site, jobs: dict[str, str]) -> bool:
    return all(site.job(job_id).terminal for job_id in jobs.values())
