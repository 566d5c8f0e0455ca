"""Colours of runs: spread over the newest runs, and kept."""

from model_core.config import ExperimentConfig
from model_core.storage.run import Run
from tests.worker.harness import submit_job
from worker.jobs import commands
from worker.jobs.recovery import jobs_on_disk, rebuild, restore, write_job_file
from worker.jobs.redis_client import PREFIX
from worker.jobs.schemas import Outcome
from worker.jobs.spec import parse_spec


def submitted(store, make_spec, *runs):
    return [submit_job(store, make_spec(run), fingerprint=run).job for run in runs]


def test_a_run_gets_the_smallest_colour_that_the_fewest_of_the_newest_have(store, make_spec):
    jobs = submitted(store, make_spec, *(f"run-{number}" for number in range(10)))
    assert [job.colour for job in jobs] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    store.run(commands.forget_colour("run-5"))
    assert [job.colour for job in submitted(store, make_spec, "more", "rest")] == [5, 2]


def test_a_record_of_an_earlier_version_is_completed(store, make_spec, connected, redis_url, claim_one):
    first, second = submitted(store, make_spec, "one", "two")
    client = connected(redis_url, for_api=False)
    client.delete(f"{PREFIX}colours", f"{PREFIX}coloured")
    for job in (first, second):
        client.hdel(f"{PREFIX}job:{job.id}", "colour", "model")
    assert claim_one().request["colour"] == 0
    assert [store.get(job.id).colour for job in (second, first, second)] == [1, 0, 1]
    assert store.get(second.id).model == second.model


def test_a_retry_from_scratch_has_the_colour_of_its_new_run(store, make_spec, claim_one, settings):
    job, _ = submitted(store, make_spec, "one", "two")
    claim = claim_one()
    Run.create(settings.layout.run("one"), ExperimentConfig(experiment_name="one"), job.id, colour=job.colour)
    store.finish(claim, Outcome("failed", "it failed"))
    again = store.retry(job.id, scratch=True).job
    assert (again.run, again.colour, Run(settings.layout.run("one")).colour()) == ("one-2", 2, 0)
    assert claim_one("another").request["colour"] == 2


def test_a_lost_redis_does_not_change_colours(store, make_spec, claim_one, settings, connected, redis_url):
    _, waiting = submitted(store, make_spec, "zero", "one")
    claim = [claim_one("a"), claim_one("b")][1]
    write_job_file(settings.layout.jobs / claim.id, claim, "running")
    connected(redis_url, for_api=False).flushdb()
    [found], _ = jobs_on_disk(settings.layout)
    store.run(restore(rebuild(settings.layout, found)))
    assert (store.get(waiting.id).colour, store.get(waiting.id).model) == (1, waiting.model)
    assert store.run(commands.keep_colour("by-hand", created_at_ms=1)) == 0
    assert store.run(commands.keep_colour("one", created_at_ms=1)) == 1


def test_jobs_that_read_a_run_have_its_colour_and_others_have_none(store, make_spec):
    submitted(store, make_spec, "zero", "one")
    spec = parse_spec({"experiment_name": "one", "execution": {"train": False, "test": True}})
    test = submit_job(store, spec, fingerprint="t").job
    export = submit_job(store, make_spec("one", kind="export"), fingerprint="e").job
    assert (test.colour, test.model) == (1, None)  # its checkpoint has the model
    assert (export.colour, export.model) == (None, None)
