"""Random walks over the store's transitions: whatever happens in whatever order, the same things hold."""

import contextlib
import random
import time

import pytest

from model_core.errors import RunExists
from worker.jobs.errors import ActionNotAllowed
from worker.jobs.job import JobError, Outcome, WorkerView
from worker.jobs.settings import JobSettings
from worker.jobs.states import ARROWS, STATUSES, TERMINAL
from worker.jobs.store import JobStore

RESULTS = ("succeeded", "failed", "stopped", "crashed")


class Walk:
    """Clients, workers and a janitor that do something at random."""

    def __init__(self, client, redis_url, data, make_spec, seed):
        self.random = random.Random(seed)
        settings = JobSettings(data=data, redis_url=redis_url, lease_s=0.02, beat_s=0.01)
        self.redis = client
        self.store, self.make_spec = JobStore(client, settings), make_spec
        self.ids, self.claims = [], []

    def submit(self):
        name = f"run-{self.random.randrange(12)}"
        with contextlib.suppress(RunExists):
            spec = self.make_spec(name, priority=self.random.randrange(3))
            self.ids.append(self.store.submit(spec, fingerprint="f").job.id)

    def claim(self):
        view = WorkerView(id="w", host="h")
        claim = self.store.claim(str(self.random.random()), view, free_gpus=0, has_gpus=False)
        self.claims += [claim] if claim else []

    def want(self):
        action = self.random.choice(("cancel", "pause", "resume", "retry"))
        with contextlib.suppress(ActionNotAllowed, RunExists, IndexError):
            self.store.want(self.random.choice(self.ids), action)

    def report(self):
        if self.claims:
            claim = self.random.choice(self.claims)
            self.store.beat(claim)
            seq = int(time.monotonic() * 1e6)
            self.store.mirror(claim, [{"seq": seq, "type": "step", "step": self.random.randrange(50)}])

    def finish(self):
        if self.claims:
            claim = self.claims.pop(self.random.randrange(len(self.claims)))
            result = self.random.choice(RESULTS)
            self.store.finish(claim, Outcome(result, result, JobError(code="failed", detail="at random")))

    def lose(self):
        """A worker falls silent; its word comes too late."""
        time.sleep(0.025)
        self.store.reap()

    def step(self):
        deeds = (self.submit, self.claim, self.want, self.report, self.finish, self.lose)
        self.random.choices(deeds, weights=(20, 25, 20, 15, 18, 2))[0]()
        self.check()

    def check(self):
        statuses = {job_id: self.redis.hget(f"headcount:job:{job_id}", "status") for job_id in self.ids}
        by_status = {status: {i for i, s in statuses.items() if s == status} for status in STATUSES}
        assert set(self.redis.zrange("headcount:ready", 0, -1)) == by_status["queued"]
        leased = set(self.redis.zrange("headcount:leases", 0, -1))
        assert leased == by_status["running"] | by_status["stopping"]
        for status, members in by_status.items():
            assert set(self.redis.zrange(f"headcount:jobs:status:{status}", 0, -1)) == members
        live = {job_id for job_id, status in statuses.items() if status not in TERMINAL}
        kept = [self.redis.get(key) for key in self.redis.keys("headcount:run:*")]
        assert sorted(kept) == sorted(live)

    def holders(self):
        """Claims by job that the store still accepts."""
        valid = [claim.id for claim in self.claims if self.store.beat(claim) != "fenced"]
        return {job_id: valid.count(job_id) for job_id in valid}

    def arrows(self):
        histories = [self.store.get(job_id).history for job_id in self.ids]
        return {(change.from_, change.to) for history in histories for change in history if change.from_}


@pytest.mark.parametrize("seed", range(3))
def test_invariants_hold_on_a_random_walk(connected, aged_redis_url, tmp_path, make_spec, seed):
    walk = Walk(connected(aged_redis_url, for_api=False), aged_redis_url, tmp_path, make_spec, seed)
    for _ in range(400):
        walk.step()
    assert set(walk.holders().values()) <= {1}
    assert walk.arrows() <= {(old, new) for old, targets in ARROWS.items() for new in targets}
    assert len(walk.arrows()) > 8
