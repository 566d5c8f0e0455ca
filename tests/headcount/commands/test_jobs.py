"""Commands about jobs against canned replies: requests, output and exit codes."""

import json

import pytest

from tests.headcount.commands.sample_responses import JOB, OTHER, WORKER, job, status, step, stream


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (("cancel", JOB), f"POST /jobs/{JOB}/cancel"),
        (("pause", JOB), f"POST /jobs/{JOB}/pause"),
        (("resume", JOB), f"POST /jobs/{JOB}/resume"),
        (("retry", JOB), f"POST /jobs/{JOB}/retry"),
        (("retry", JOB, "--from-scratch"), f"POST /jobs/{JOB}/retry?from=scratch"),
    ],
)
def test_an_action_is_asked_for_and_the_new_status_said(service, headcount, command, asked) -> None:
    service.says(asked.partition("?")[0], job(status="queued", run="one-2"), 202)
    assert headcount(*command) == (0, f"{JOB}  queued  run one-2\n", "")
    assert service.asked == [asked]


@pytest.mark.parametrize(("options", "asked"), [((), ""), (("--artifacts",), "?artifacts=true")])
def test_deleting_says_what_goes(service, headcount, options, asked) -> None:
    service.says(f"DELETE /jobs/{JOB}", b"", 204)
    code, out, _ = headcount("delete", JOB, *options)
    assert (code, out.startswith(f"{JOB}  deleted")) == (0, True)
    assert service.asked == [f"DELETE /jobs/{JOB}{asked}"]


@pytest.mark.parametrize(
    ("status_code", "problem", "code"),
    [
        (409, {"code": "action_not_allowed", "detail": "a job that is succeeded cannot pause; allowed now: delete"}, 2),
        (404, {"code": "job_not_found", "detail": "no job 'x'"}, 2),
        (409, {"code": "run_busy", "detail": "run 'one' is held by another process"}, 76),
        (503, {"code": "queue_unavailable", "detail": "the queue does not answer"}, 1),
    ],
)
def test_a_refusal_is_a_line_and_a_code(service, headcount, status_code, problem, code) -> None:
    service.says(f"POST /jobs/{JOB}/pause", problem, status_code)
    assert headcount("pause", JOB) == (code, "", f"headcount: {problem['code']}: {problem['detail']}\n")


def test_a_list_says_what_waits_and_ranks_when_it_matters(service, headcount) -> None:
    ready = job(status="queued", queue={"position": 2, "jobs_ahead": 1, "eta_s": None})
    waiting = job(id=OTHER, status="queued", waiting_for=[JOB])
    service.says("GET /jobs", {"data": [ready, waiting], "has_more": False})
    _, plain, _ = headcount("jobs")
    assert "queued, place 2" in plain
    assert "queued, waits for 1" in plain
    assert "priority" not in plain
    service.replies.clear()
    service.says("GET /jobs", {"data": [job(priority=-7)], "has_more": True})
    _, ranked, _ = headcount("jobs")
    assert "priority" in ranked
    assert "-7" in ranked
    assert "there are more" in ranked


def test_a_card_reports_attempts_queue_and_what_to_do_about_an_error(service, headcount) -> None:
    attempts = [
        {
            "attempt": 1, "run": "one", "worker": WORKER, "started_at": "2026-01-01T00:00:01Z",
            "ended_at": "2026-01-01T00:01:00Z", "result": "failed", "reason": "it crashed", "step": 40,
            "resumed_from": None,
        },
        {
            "attempt": 2, "run": "one-2", "worker": None, "started_at": "2026-01-01T00:02:00Z", "ended_at": None,
            "result": None, "reason": None, "step": 41, "resumed_from": {"file": "model_latest.pt", "step": 40},
        },
    ]  # fmt: skip
    error = {"code": "cuda_oom", "detail": "no memory", "step": 3, "hint": "halve training.batch_size"}
    queue = {"position": 3, "jobs_ahead": 2, "eta_s": [60, 125]}
    facts = {"attempts": attempts, "error": error, "queue": queue, "waiting_for": [OTHER], "metadata": {"who": "me"}}
    service.says(f"GET /jobs/{JOB}", job(**facts, priority=5))
    _, out, _ = headcount("job", JOB)
    for said in (
        "place 3, 2 ahead; starts in 0:01:00 to 0:02:05",
        OTHER,
        "cuda_oom: no memory",
        "halve training.batch_size",
        "on host cuda:0, to step 40, then failed (it crashed)",
        "to now, run one-2, from model_latest.pt at step 40, to step 41",
        "metadata who",
    ):
        assert said in out


def test_the_queue_says_who_is_next_and_when(service, headcount) -> None:
    first = job(status="queued", queue={"position": 1, "jobs_ahead": 0, "eta_s": [5, 5]}, priority=9)
    second = job(id=OTHER, status="queued", queue={"position": 2, "jobs_ahead": 1, "eta_s": None})
    counts = {"object": "queue", "queued": 4, "ready": 3, "waiting": 1, "running": 2}
    service.says("GET /queue", {**counts, "data": [first, second]})
    code, out, _ = headcount("queue", "--limit", "2")
    assert code == 0
    assert service.asked == ["GET /queue?limit=2"]
    assert "2 running, 4 queued: 3 ready, 1 waiting for others" in out
    assert [line.split()[0] for line in out.splitlines() if "job_" in line] == ["1", "2"]
    assert "0:00:05" in out
    assert "unknown" in out
    assert "there are more" in out


def test_workers_are_listed_with_their_gpus(service, headcount) -> None:
    gpus = [
        {"index": 0, "uuid": "GPU-1", "name": "H200", "memory_bytes": 139 * 2**30, "job": JOB},
        {"index": 1, "uuid": "GPU-2", "name": "H200", "memory_bytes": None, "job": None},
    ]
    big = {"id": "big:1", "host": "big", "slots": 2, "busy": 1, "jobs": [JOB], "gpus": gpus}
    small = {"id": "small:1", "host": "small", "slots": 1, "busy": 0, "jobs": [], "gpus": []}
    service.says("GET /workers", {"object": "list", "data": [big, small]})
    _, out, _ = headcount("workers")
    assert "1/2" in out
    assert f"0 H200 139 GiB {JOB}" in out
    assert "1 H200 free" in out
    assert "none" in out
    service.replies.clear()
    service.says("GET /workers", {"object": "list", "data": []})
    assert headcount("workers")[1] == "no worker is alive\n"


@pytest.mark.parametrize("command", [("jobs",), ("queue",), ("workers",)])
def test_programs_get_json(service, headcount, command) -> None:
    service.says(f"GET /{command[0]}", {"data": [], "has_more": False})
    assert json.loads(headcount(*command, "--json")[1]) == {"data": [], "has_more": False}


def test_following_goes_on_through_a_pause_and_a_restart_of_the_service(service, headcount, tmp_path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("experiment_name: one\n")
    service.says("POST /jobs", job(status="queued"), 202)
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), step(1), status("stopping"), status("paused")))
    service.says(f"GET /jobs/{JOB}/events", {"code": "queue_unavailable"}, 503)
    service.says(f"GET /jobs/{JOB}/events", stream(status("paused"), status("queued"), status("running"), step(2)))
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), step(2), status("succeeded")))
    code, out, err = headcount("submit", str(file), "--follow")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("job is")] == [
        "job is running",
        "job is stopping (asked)",
        "job is paused; continue it with headcount resume ID",
        "job is queued (asked)",
        "job is running",
        "job is succeeded",
    ]


def test_a_failure_that_was_retried_at_once_is_not_the_end(service, headcount) -> None:
    failed = status("failed", terminal=False)
    service.says(f"GET /jobs/{JOB}/events", stream(failed, status("queued")))
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), step(1), status("succeeded")))
    _, out, _ = headcount("events", JOB, "--follow")
    told = [json.loads(line) for line in out.splitlines()]
    assert [event["status"] for event in told if event["type"] == "status"] == [
        "failed",
        "queued",
        "running",
        "succeeded",
    ]


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        (status("failed", error={"code": "cuda_oom", "detail": "no memory", "hint": "halve it"}), 1,
         "headcount: cuda_oom: no memory; halve it\n"),
        (status("cancelled"), 75, ""),
    ],
)  # fmt: skip
def test_following_ends_as_the_job_does(service, headcount, tmp_path, last, code, said) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("experiment_name: one\n")
    service.says("POST /jobs", job(status="queued"), 202)
    service.says(f"GET /jobs/{JOB}/events", stream(status("running"), last))
    ended, _, err = headcount("submit", str(file), "--follow")
    assert (ended, err) == (code, said)
