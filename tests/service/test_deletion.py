"""Deletion of jobs, runs and datasets, and its interruptions."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model_core.attention.record import text_directory
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.storage.trash import (
    empty_trash,
    lock_for_deletion,
    lock_run_for_deletion,
    move_run_to_trash,
    move_to_trash,
)

FREE = {"artifacts": "true"}
TEST = {"experiment_name": "tiny", "execution": {"train": False, "test": True}}


def over(site: Any, name: str = "tiny", result: str = "succeeded") -> dict[str, Any]:
    """A training that ended, with everything that it leaves."""
    job = site.submit(name)
    claim = site.claim()
    run = site.make_run(name, job_id=job["id"])
    run.log.parent.mkdir()
    run.log.write_text("one\n")
    fill(text_directory(site.layout, name, "0") / "layer00.png")
    fill(site.layout.jobs / job["id"] / "child.log")
    site.finish(claim, result)
    return job


def fill(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1000)


def files(layout: Layout) -> list[str]:
    """Every file below the data root but datasets, which nobody deletes here, and locks, which stay."""
    every = (path for path in layout.exp.parent.rglob("*") if path.is_file() and layout.datasets not in path.parents)
    found = (path for path in every if not path.name.endswith("lock"))
    return sorted(str(path.relative_to(layout.exp.parent)) for path in found)


def directories(layout: Layout) -> list[str]:
    """Runs, their pictures, and jobs, also the hidden ones."""
    rooms = (layout.exp, layout.attention, layout.jobs)
    return sorted(path.name for room in rooms for path in room.iterdir() if path.is_dir())


def test_a_job_is_forgotten_and_what_it_left_stays(site) -> None:
    job = over(site)
    before = files(site.layout)
    reply = site.http.delete(job["links"]["self"])
    assert (reply.status_code, reply.content) == (204, b"")
    written_off = f"jobs/{job['id']}/job.json"  # or reindex would find the job again
    assert files(site.layout) == sorted([*before, written_off])
    assert site.http.get(job["links"]["self"]).status_code == 404
    assert site.http.get("/jobs").json()["data"] == []
    assert site.http.get("/runs/tiny").json()["status"] == "unknown"


def test_the_bytes_of_a_job_are_free_when_the_answer_comes(site) -> None:
    kept = over(site, "other")
    before = files(site.layout)
    job = over(site)
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert files(site.layout) == before
    assert directories(site.layout) == [kept["id"], "other", "other"]
    assert [item["id"] for item in site.http.get("/jobs").json()["data"]] == [kept["id"]]
    assert site.submit("tiny")["run"] == "tiny"  # the name is free again


def test_a_run_that_another_job_made_since_stays(site) -> None:
    job = site.submit("tiny")
    site.http.post(job["links"]["cancel"])
    over(site)
    before = files(site.layout)
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert files(site.layout) == before


def test_a_test_takes_only_its_own_directory_with_it(site) -> None:
    over(site)
    before = files(site.layout)
    job = site.http.post("/jobs", json=TEST).json()
    fill(site.layout.jobs / job["id"] / "events.jsonl")
    site.finish(site.claim())
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert files(site.layout) == before


def test_a_run_that_is_held_or_needed_stays_with_its_job(site) -> None:
    job = over(site, result="failed")
    lock = Run(site.layout.run("tiny")).lock()
    held = site.http.delete(job["links"]["self"], params=FREE)
    lock.release()
    assert (held.status_code, held.json()["code"]) == (409, "run_busy")

    test = site.http.post("/jobs", json=TEST).json()
    needed = site.http.delete(job["links"]["self"], params=FREE)
    assert (needed.status_code, needed.json()["code"]) == (409, "run_busy")
    assert site.http.get("/runs/tiny").status_code == 200

    site.http.post(test["links"]["cancel"])
    assert site.http.post(f"{job['links']['self']}/retry").status_code == 202  # nothing of the deletion is left


def test_what_a_job_left_behind_when_it_began_from_scratch_goes_too(site) -> None:
    job = over(site, result="failed")
    site.http.post(f"{job['links']['self']}/retry", params={"from": "scratch"})
    claim = site.claim()
    site.make_run("tiny-2", job_id=job["id"])
    site.finish(claim)
    test = site.http.post("/jobs", json=TEST).json()
    assert site.http.delete(job["links"]["self"], params=FREE).json()["code"] == "run_busy"

    site.http.post(test["links"]["cancel"])
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert directories(site.layout) == []


def test_a_job_that_runs_is_not_deleted(site) -> None:
    job = site.submit()
    claim = site.claim()
    run = site.make_run("tiny", job_id=job["id"])
    lock = run.lock()
    reply = site.http.delete(job["links"]["self"], params=FREE)
    lock.release()
    assert (reply.status_code, reply.json()["code"]) == (409, "action_not_allowed")
    assert reply.json()["allowed_actions"] == ["cancel", "pause"]
    assert site.store.heartbeat(claim) == "run"


def _doomed(site: Any, job_id: str) -> None:
    site.store.mark_deleted(job_id, with_artifacts=True)


def _hidden(site: Any, job_id: str) -> None:
    _doomed(site, job_id)
    with lock_for_deletion(site.layout, ["tiny"], job_id) as runs:
        move_to_trash(site.layout, runs, job_id)


def _half_removed(site: Any, job_id: str) -> None:
    _hidden(site, job_id)
    next(site.layout.exp.glob(".tiny.*/attempt")).unlink()


def _not_forgotten(site: Any, job_id: str) -> None:
    _hidden(site, job_id)
    empty_trash(site.layout, job_id)


@pytest.mark.parametrize("died", [_doomed, _hidden, _half_removed, _not_forgotten])
def test_a_deletion_that_broke_off_is_finished_by_the_next(site, died: Callable[[Any, str], None]) -> None:
    job = over(site)
    died(site, job["id"])
    assert site.http.post(f"{job['links']['self']}/resume").status_code == 409
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert files(site.layout) == []
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 404


def test_a_run_made_while_a_deletion_had_broken_off_stays(site) -> None:
    job = over(site)
    _hidden(site, job["id"])
    over(site)
    made = [name for name in files(site.layout) if job["id"] not in name]
    assert site.http.delete(job["links"]["self"], params=FREE).status_code == 204
    assert files(site.layout) == made


def test_many_deletions_at_once_are_one(site) -> None:
    job = over(site)
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: site.http.delete(job["links"]["self"], params=FREE), range(24)))
    codes = {reply.status_code for reply in replies}
    assert 204 in codes
    assert codes <= {204, 404, 409}
    assert directories(site.layout) == []


# --- runs, whichever job made them -----------------------------------------------------------------------------------


def by_hand(site: Any, name: str = "mine") -> Run:
    """A run without a job, with a picture and an export."""
    run: Run = site.make_run(name)
    fill(text_directory(site.layout, name, "0") / "layer00.png")
    site.add_export(run)
    return run


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_a_run_goes_with_its_pictures_and_exports_and_nothing_else(site) -> None:
    over(site, "other")
    before = files(site.layout)
    by_hand(site)
    assert site.http.delete("/runs/mine").status_code == 204
    assert files(site.layout) == before
    gone = site.http.delete("/runs/mine")
    assert (gone.status_code, gone.json()["code"]) == (404, "run_not_found")
    assert site.submit("mine")["run"] == "mine"  # the name is free


def test_a_dry_run_counts_the_bytes_and_deletes_nothing(site) -> None:
    run = by_hand(site)
    before = files(site.layout)
    reply = site.http.delete("/runs/mine", params={"dry_run": "true"})
    sizes = [size_of(path) for path in (run.path, site.layout.attention_of("mine"), site.layout.exports_of("mine"))]
    assert (reply.status_code, reply.json()) == (200, {
        "object": "run_deletion", "run": "mine", "size_bytes": sum(sizes), "run_bytes": sizes[0],
        "attention_bytes": sizes[1], "export_bytes": sizes[2], "checkpoints": ["model_best.pt"], "warnings": [],
    })  # fmt: skip
    assert files(site.layout) == before
    assert site.http.delete("/runs/nowhere", params={"dry_run": "true"}).status_code == 404
    assert site.http.delete("/runs/mine", params={"dry": "true"}).status_code == 422
    assert site.http.delete("/runs/mine", params={"dry_run": "perhaps"}).status_code == 422


def _read(site: Any) -> None:
    site.http.post("/runs/tiny/exports")


def _tested(site: Any) -> None:
    site.http.post("/jobs", json=TEST)


def _continued(site: Any) -> None:
    [job] = site.http.get("/jobs").json()["data"]
    assert site.http.post(f"{job['links']['self']}/retry").status_code == 202


def _started_from(site: Any) -> None:
    site.submit("next", checkpoint={"load_checkpoint": "tiny"})


def _started_from_a_file(site: Any) -> None:
    site.submit("next", checkpoint={"load_checkpoint": "tiny/model_best.pt"})


def _pinned(site: Any) -> None:
    assert site.http.put("/runs/tiny/checkpoints/best/pin").status_code == 200


@pytest.mark.parametrize("use", [_read, _tested, _continued, _started_from, _started_from_a_file, _pinned])
def test_a_run_that_is_used_or_pinned_stays(site, use: Callable[[Any], None]) -> None:
    over(site, result="failed")
    use(site)
    before = files(site.layout)
    refused = site.http.delete("/runs/tiny")
    assert (refused.status_code, refused.json()["code"]) == (409, "run_busy")
    counted = site.http.delete("/runs/tiny", params={"dry_run": "true"})
    assert (counted.status_code, [item["code"] for item in counted.json()["warnings"]]) == (200, ["run_busy"])
    assert files(site.layout) == before


def test_a_run_that_a_process_holds_stays_and_the_run_of_a_longer_name_is_no_user(site) -> None:
    run = by_hand(site)
    by_hand(site, "mine-2")
    site.submit("next", checkpoint={"load_checkpoint": "mine-2"})
    lock = run.lock()
    held = site.http.delete("/runs/mine")
    lock.release()
    assert (held.status_code, held.json()["code"]) == (409, "run_busy")
    assert site.http.delete("/runs/mine").status_code == 204


def test_a_retry_after_its_run_was_deleted_starts_anew_and_keeps_counting(site) -> None:
    job = site.submit("tiny")
    claim = site.claim()
    site.make_run("tiny", job_id=job["id"])
    writer = site.writer(claim)
    told = [writer.append("step", step=7, loss=1.0) for _ in range(3)]
    writer.close()
    site.store.mirror(claim, told)
    site.finish(claim, "failed")
    assert site.http.delete("/runs/tiny").status_code == 204
    again = site.http.post(f"{job['links']['self']}/retry").json()
    assert (again["status"], again["run"], again["progress"]["step"]) == ("queued", "tiny", 0)
    assert site.claim().seq_after == told[-1]["seq"]


def _half_hidden(site: Any) -> None:
    site.layout.attention_of("mine").rename(site.layout.attention / ".mine.run.removed")


def _hidden_run(site: Any) -> None:
    with lock_run_for_deletion(site.layout, "mine") as run:
        move_run_to_trash(site.layout, run, "run")


def _half_erased(site: Any) -> None:
    _hidden_run(site)
    (site.layout.exp / ".mine.run.removed" / "config.yaml").unlink()


@pytest.mark.parametrize("died", [_half_hidden, _hidden_run, _half_erased])
def test_the_deletion_of_a_run_that_broke_off_is_finished_by_the_next(site, died: Callable[[Any], None]) -> None:
    by_hand(site)
    died(site)
    assert site.http.delete("/runs/mine").status_code == 204
    assert files(site.layout) == []
    assert site.http.delete("/runs/mine").status_code == 404
