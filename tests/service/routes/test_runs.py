"""Runs over HTTP."""

from model_core.storage.files import write_json


def test_runs_are_listed_by_name_and_reported_in_full(site) -> None:
    for name in ("beta", "alpha", "gamma"):
        site.make_run(name)
    page = site.http.get("/runs", params={"limit": 2})
    assert ([run["name"] for run in page.json()["data"]], page.json()["has_more"]) == (["alpha", "beta"], True)
    assert [run["name"] for run in site.http.get(page.links["next"]["url"]).json()["data"]] == ["gamma"]

    run = site.http.get("/runs/beta").json()
    assert (run["object"], run["status"], run["job"]) == ("run", "unknown", None)
    assert run["config"]["model"]["n_head_list"] == [4, 2]
    assert [(c["file"], c["step"]) for c in run["checkpoints"]] == [("model_best.pt", 3)]
    assert run["links"]["self"] == "/runs/beta"
    listed = site.http.get("/runs").json()["data"][1]
    assert (listed["checkpoint_count"], listed["step"], listed["val_loss"]) == (1, 3, run["checkpoints"][0]["val_loss"])
    assert "checkpoints" not in listed


def test_a_run_has_the_status_of_its_job_and_without_it_of_its_outcome(site) -> None:
    job = site.submit("tiny")
    claim = site.claim()
    run = site.make_run("tiny", job_id=job["id"])
    assert site.http.get("/runs/tiny").json()["status"] == "running"
    site.finish(claim, "failed")
    assert site.http.get("/runs/tiny").json()["status"] == "failed"

    by_hand = site.make_run("by-hand")
    write_json(by_hand.path / "outcome.json", {"attempt": 1, "outcome": "stopped", "error": None})
    assert site.http.get("/runs/by-hand").json()["status"] == "stopped"
    run.begin_attempt(2, "job_lost")
    assert site.http.get("/runs/tiny").json()["status"] == "unknown"


def test_an_unknown_run_is_not_found_and_a_wrong_name_is_refused(site) -> None:
    missing = site.http.get("/runs/nowhere")
    assert (missing.status_code, missing.json()["code"]) == (404, "run_not_found")
    wrong = site.http.get("/runs/.hidden")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_parameter")
    assert wrong.json()["errors"][0]["nearest"] == ["hidden"]


def test_a_run_without_a_colour_gets_one_for_ever_and_shows_its_heads(site) -> None:
    job = site.submit("first")
    for name in ("beta", "alpha"):
        site.make_run(name)
    listed = site.http.get("/runs").json()["data"]
    assert [run["colour"] for run in listed] == [1, 2]
    assert listed[0]["model"] == {"n_layer": 2, "n_embd": 32, "heads": [4, 2], "head_dim": None}
    site.lose_redis()
    assert [run["colour"] for run in site.http.get("/runs").json()["data"]] == [1, 2]
    assert job["colour"] == 0
