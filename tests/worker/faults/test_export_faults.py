"""An export that is paused or cancelled leaves no folder, and starts over when resumed."""

import pytest

from model_core.hf.export_folder import list_exports, read_licence
from model_core.storage.run import Run
from model_core.storage.trash import lock_exports
from tests.polling import eventually
from tests.process import is_over
from tests.worker.harness import submit_job
from worker.jobs.spec import parse_spec

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LONG_S = 120.0


@pytest.fixture(scope="module")
def site(make_site, start_redis):
    """A worker, and a run to export."""
    site = make_site(start_redis(unix=True).url, child="real")
    site.start_worker()
    site.until(site.submit("shown"), "succeeded", LONG_S)
    return site


def begun(site, **job):
    """An export that waits, because somebody else holds the run's exports; the job and its process."""
    tree = {"experiment_name": "shown", "job": {"kind": "export", **job}}
    job_id = submit_job(site.store, parse_spec(tree), fingerprint=str(job)).job.id
    site.wake()
    events = site.settings.layout.jobs / job_id / "events.jsonl"
    eventually(lambda: events.exists() and b'"start"' in events.read_bytes(), LONG_S)
    return job_id, site.child_of(job_id)


def test_an_export_that_is_paused_leaves_nothing_and_is_whole_when_resumed(site) -> None:
    layout, run = site.settings.layout, Run(site.settings.layout.run("shown"))
    with lock_exports(layout, "shown"):
        job_id, process = begun(site, licence="mit")
        site.store.request_action(job_id, "pause")
        site.until(job_id, "paused")
        left = is_over(process), list_exports(layout, run)

    site.store.request_action(job_id, "resume")
    site.wake()
    site.until(job_id, "succeeded", LONG_S)

    assert left == (True, [])
    (export,) = list_exports(layout, run)
    assert read_licence(layout.exports / "shown" / export.name) == "mit"


def test_an_export_that_is_cancelled_is_gone_at_once(site) -> None:
    layout, run = site.settings.layout, Run(site.settings.layout.run("shown"))
    before = list_exports(layout, run)
    with lock_exports(layout, "shown"):
        job_id, process = begun(site, licence="apache-2.0")
        site.store.request_action(job_id, "cancel")
        site.until(job_id, "cancelled")
        assert is_over(process)

    assert list_exports(layout, run) == before
    assert site.children() == []
