"""The outcome of a job's process, and its lease."""

import pytest

from tests.polling import eventually
from tests.worker.harness import submit_job
from worker.jobs.schemas import WorkerView
from worker.jobs.worker_store import WorkerStore
from worker.supervisor import Lease, outcome_of

FAILED = {"outcome": "failed", "error": {"code": "cuda_oom", "detail": "no memory", "step": None, "hint": None}}


@pytest.mark.parametrize(
    ("code", "record", "stop_reason", "last_line", "result", "error"),
    [
        (0, {"outcome": "succeeded"}, None, "", "succeeded", None),
        (0, {"outcome": "succeeded"}, "cancel", "", "succeeded", None),
        (0, None, None, "", "crashed", None),
        (1, FAILED, None, "", "failed", "cuda_oom"),
        (75, {"outcome": "stopped"}, "pause", "", "stopped", None),
        (75, {"outcome": "stopped", "reason": "SIGTERM"}, None, "", "crashed", None),  # by itself, again and again
        (75, None, "cancel", "", "stopped", None),
        (-15, None, "worker stopping", "", "stopped", None),  # stopped before it handled SIGTERM
        (-9, None, "cancel", "", "stopped", None),
        (76, None, None, "error: run 'x' is held", "busy", None),
        (-9, None, None, "", "crashed", None),
        (-11, None, None, "", "crashed", None),
        (1, None, None, "ImportError: no", "crashed", None),
        (2, None, None, "error: run 'x' exists", "failed", "invalid_config"),
        (1, None, None, "error: no space", "failed", "internal_error"),
        (75, {"outcome": "stopped"}, "stalled", "", "crashed", "stalled"),
    ],
)
def test_outcome_is_what_the_child_reported_or_else_what_was_observed(
    code, record, stop_reason, last_line, result, error
):
    outcome = outcome_of(code, record, stop_reason=stop_reason, last_line=last_line, job_id="job_1", stall_s=900.0)
    assert (outcome.result, outcome.error.code if outcome.error else None) == (result, error)


def test_reason_names_the_signal():
    assert "SIGSEGV" in outcome_of(-11, None, stop_reason=None, last_line="", job_id="job_1", stall_s=900.0).reason


class Stumbling(WorkerStore):
    """Beats that fail in a way that nobody foresaw, but for the third."""

    beats = 0

    def heartbeat(self, claim, worker=None):
        self.beats += 1
        if self.beats != 3:
            raise RuntimeError("unforeseen")
        return super().heartbeat(claim, worker)


def test_heartbeats_continue_after_one_failed(settings, make_spec, connected):
    store = Stumbling(connected(settings.redis_url, for_api=False), settings)
    submit_job(store, make_spec("one"), fingerprint="f")
    worker = WorkerView(id="w1", host="here")
    claim = store.claim("token", worker)
    store.request_action(claim.id, "pause")
    with Lease(store, claim, worker, interval_s=0.01) as lease:
        eventually(lambda: store.beats > 3)
        assert lease.desired == "pause"
