"""Events on their way from the disk to Redis."""

import time

from model_core.records.events import EventWriter
from model_core.records.run import Run
from worker.mirror import Mirror


def test_what_cannot_be_read_for_a_moment_is_read_later(store, settings, make_spec, claim_one):
    store.submit(make_spec("one"), fingerprint="f")
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
    time.sleep(1.05)
    mirror.pump()
    assert [event["step"] for event in store.events(claim.id)] == [1]
