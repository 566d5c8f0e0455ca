"""The heartbeat of a job goes on whatever a beat runs into."""

from tests.worker.site import eventually
from worker.jobs.schemas import WorkerView
from worker.jobs.worker_store import WorkerStore
from worker.supervisor import Lease


class Stumbling(WorkerStore):
    """Beats that fail in a way that nobody foresaw, but for the third."""

    beats = 0

    def heartbeat(self, claim, worker=None):
        self.beats += 1
        if self.beats != 3:
            raise RuntimeError("unforeseen")
        return super().heartbeat(claim, worker)


def test_beats_go_on_after_one_that_failed(settings, make_spec, connected):
    store = Stumbling(connected(settings.redis_url, for_api=False), settings)
    store.submit(make_spec("one"), fingerprint="f")
    worker = WorkerView(id="w1", host="here")
    claim = store.claim("token", worker)
    store.request_action(claim.id, "pause")
    with Lease(store, claim, worker, every_s=0.01) as lease:
        eventually(lambda: store.beats > 3)
        assert lease.desired == "pause"
