"""Events are copied from disk to Redis."""

import contextlib

from model_core.storage.events import EventWriter
from model_core.storage.run import Run
from tests.polling import eventually
from tests.worker.harness import submit_job
from worker.event_mirror import Mirror
from worker.jobs.errors import QueueUnavailable
from worker.jobs.schemas import WorkerView
from worker.jobs.worker_store import WorkerStore


def test_what_cannot_be_read_for_a_moment_is_read_later(store, settings, make_spec, claim_one):
    submit_job(store, make_spec("one"), fingerprint="f")
    claim = claim_one()
    mirror = Mirror(store, claim, settings.layout, tokens_per_step=1)
    path = settings.layout.run("one")
    path.mkdir(parents=True)
    (path / "attempt").write_text("{")
    mirror.pump()

    (path / "attempt").unlink()
    Run(path).begin_attempt(claim.attempt, claim.id)
    writer = EventWriter(path / "events.jsonl", claim.attempt)
    writer.append("step", step=1, loss=1.0)
    writer.close()

    def pumped():
        mirror.pump()
        return store.events(claim.id)

    assert [event["step"] for event in eventually(pumped)] == [1]


class Forgetful(WorkerStore):
    """A Redis that goes away once and comes back without its last second."""

    away = False

    def mirror(self, claim, events, progress=None):
        if self.away:
            self.away = False
            key = f"headcount:job:{claim.id}"
            kept = self._redis.xrange(f"{key}:events", max="2-0")
            self._redis.delete(f"{key}:events")  # a new stream, because XSETID to before a deleted entry is refused
            for entry, fields in kept:
                self._redis.xadd(f"{key}:events", fields, id=entry)
            self._redis.hset(key, "mirrored", 2)
            raise QueueUnavailable("ConnectionError")
        return super().mirror(claim, events, progress)


def test_what_a_restarted_redis_has_lost_is_reported_again(settings, make_spec, connected):
    store = Forgetful(connected(settings.redis_url, for_api=False), settings)
    submit_job(store, make_spec("one"), fingerprint="f")
    claim = store.claim("token", WorkerView(id="w1", host="here"))
    run = Run(settings.layout.run("one"))
    run.begin_attempt(claim.attempt, claim.id)
    mirror, writer = Mirror(store, claim, settings.layout, tokens_per_step=1), EventWriter(run.events, claim.attempt)
    for step in (1, 2, 3):
        writer.append("step", step=step, loss=1.0)
    mirror.drain()

    store.away = True
    writer.append("step", step=4, loss=1.0)
    with contextlib.suppress(QueueUnavailable):
        mirror.drain()
    mirror.drain()
    writer.close()

    assert [event["seq"] for event in store.events(claim.id)] == [1, 2, 3, 4]
    assert store.get(claim.id).progress.step == 4
