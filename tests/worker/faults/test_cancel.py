"""A cancelled job never runs, or its process is gone once it is cancelled, with intact files."""

import pytest

from model_core.storage.run import Run
from tests.polling import eventually, seconds_until
from tests.process import is_over

pytestmark = pytest.mark.e2e

LARGE = {"n_layer": 1, "n_embd": 256, "n_head": 2, "vocab_size": 50304, "block_size": 32}


@pytest.fixture(scope="module")
def site(make_site, start_redis):
    site = make_site(start_redis(unix=True).url)
    site.start_worker()
    return site


@pytest.fixture(scope="module")
def real_site(make_site, start_redis):
    site = make_site(start_redis(unix=True).url, child="real")
    site.start_worker()
    return site


def test_cancelled_job_frees_its_slot_and_a_queued_one_never_runs(site, seen):
    running, queued = site.submit("running", steps=1000, step_s=0.05), site.submit("queued")
    process = site.until_step(running, 1)

    assert site.store.request_action(queued, "cancel").job.status == "cancelled"
    assert site.store.request_action(running, "cancel").job.status == "stopping"
    seconds = seconds_until(lambda: site.job(running).status == "cancelled")

    assert is_over(process)
    assert site.job(running).terminal
    log = site.event_log("running")
    assert log.of("checkpoint")[-1]["step"] == log.steps[-1]
    assert site.until(site.submit("after"), "succeeded").attempt == 1
    assert (site.job(queued).attempt, site.settings.layout.run("queued").exists()) == (0, False)
    seen("cancel queued, fake", "at once, never ran")
    seen("cancel running, fake", f"saved and gone after {seconds:.1f} s")


def test_job_cancelled_while_its_process_starts_is_stopped(site, seen):
    job_id = site.submit("starts-slowly")
    process = site.child_of(job_id)
    site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: site.job(job_id).status == "cancelled")
    assert is_over(process)
    assert site.events("starts-slowly") == []
    seen("cancel starting, fake", f"gone after {seconds:.1f} s")


def test_job_cancelled_while_it_saves_leaves_a_whole_state(site, seen):
    job_id = site.submit("saves-slowly", steps=1000)
    directory = site.settings.layout.run("saves-slowly")
    eventually(lambda: list(directory.glob(".state.json.*.tmp")))
    site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: site.job(job_id).status == "cancelled")
    assert (directory / "state.json").read_text() == '{"step": 5}'
    seen("cancel saving, fake", f"state whole, gone after {seconds:.1f} s")


@pytest.mark.slow
def test_trainer_cancelled_while_it_starts_is_stopped(real_site, seen):
    job_id = real_site.submit("starting")
    process = real_site.child_of(job_id)
    real_site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: real_site.job(job_id).status == "cancelled")
    assert is_over(process)
    assert real_site.event_log("starting").steps == []
    seen("cancel starting, real", f"gone after {seconds:.1f} s")


@pytest.mark.slow
def test_trainer_cancelled_while_it_saves_leaves_whole_checkpoints(real_site, seen):
    job_id = real_site.submit("saving", steps=1000, changes={"model": LARGE, "evaluation": {"checkpoint_every": 1}})
    run = Run(real_site.settings.layout.run("saving"))
    eventually(lambda: list(run.path.glob(".model_00002.pt.*.tmp")))
    real_site.store.request_action(job_id, "cancel")
    seconds = seconds_until(lambda: real_site.job(job_id).status == "cancelled")
    states = run.full_states()
    read = [_size(run, info) for info in states]  # raises where bytes and hash differ
    assert states[0].step >= 2
    assert not list(run.path.glob(".*.tmp"))
    seen("cancel saving, real", f"{len(read)} states of {read[0] >> 20} MiB whole, gone after {seconds:.1f} s")


def _size(run, info):
    with run.opened(info) as (_, found):
        return found.size_bytes
