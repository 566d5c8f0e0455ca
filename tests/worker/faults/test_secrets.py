"""A canary token in the environment of worker and API appears in no output."""

from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.hub.emulator import Repository, parquet

pytestmark = pytest.mark.e2e

CANARY = "hf_CanaryInTheMine"


@pytest.mark.parametrize(
    ("token", "is_handed_on"),
    [(CANARY, True), pytest.param(f"{CANARY}\nsecond line", False, marks=pytest.mark.slow)],
)
def test_a_token_appears_in_no_log_status_spec_or_error(
    hurried, monkeypatch: pytest.MonkeyPatch, token: str, is_handed_on: bool
):
    monkeypatch.setenv("HF_TOKEN", token)
    server, site = hurried(crash_budget=1)
    site.start_worker(slots=2)
    site.start_api()
    jobs = {run: site.submit(run) for run in ("fine", "refuses", "dies")}
    ends = {"fine": "succeeded", "refuses": "failed", "dies": "failed"}
    for run, status in ends.items():
        site.until(jobs[run], status)
    assert ("HF_TOKEN" in site.events("fine")[0]["environment"]) == is_handed_on

    asked = [httpx.get(f"{site.url}/jobs", params={name: CANARY}, trust_env=False) for name in ("token", "HF_Token")]
    assert [reply.status_code for reply in asked] == [422, 422]
    assert site.log("api").read_text().count("=***") == 2
    answers = [reply.text for reply in asked]
    answers += [text for job in jobs.values() for text in told(site.url, f"/jobs/{job}")]
    answers += [httpx.get(f"{site.url}{path}", trust_env=False).text for path in ("/jobs", "/workers", "/readyz")]
    assert CANARY not in "".join(answers)
    assert holding(site.settings.data) == []
    assert holding(server.directory) == []  # each command that Redis was sent


def told(url: str, job: str) -> list[str]:
    paths = ("", "/events", "/logs", "/logs?source=process", "/metrics")
    return [httpx.get(f"{url}{job}{path}", trust_env=False).text for path in paths]


def holding(directory: Path) -> list[Any]:
    """Files below a directory that hold the canary."""
    return [path for path in directory.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_token_of_a_gated_corpus_appears_nowhere(hurried, hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rows = [{"text": f"Document {n} is about the number {n}."} for n in range(200)]
    for name in ("own/open", "own/shut"):
        hub.repositories[name] = Repository({"data/train.parquet": parquet(rows)}, gated=True)
    hub.tokens[CANARY] = {"own/open": "granted", "own/shut": "pending"}
    for variable, value in hub.environment(tmp_path / "hub", HF_TOKEN=CANARY).items():
        monkeypatch.setenv(variable, value)
    server, site = hurried()
    site.start_worker()
    site.start_api()
    with httpx.Client(base_url=site.url, trust_env=False) as api:
        made = api.post("/datasets", json={"name": "open", "source": "hub:own/open"}).json()["id"]
        training = {"data": {"dataset": "shut", "source": "hub:own/shut"}}
        waits = api.post("/jobs", json=training).json()
        site.until(made, "succeeded")
        site.until(waits["id"], "failed")
        refused = api.get(f"/jobs/{waits['waiting_for'][0]}").json()

    assert refused["error"]["code"] == "hub_terms_not_accepted"
    assert refused["error"]["detail"] in site.job(waits["id"]).error.detail
    answers = [text for job in (made, waits["id"], refused["id"]) for text in told(site.url, f"/jobs/{job}")]
    paths = ("/jobs", "/workers", "/datasets", "/datasets/open", "/datasets/shut")
    answers += [httpx.get(f"{site.url}{path}", trust_env=False).text for path in paths]
    assert CANARY not in "".join(answers)
    assert holding(site.settings.data) == []
    assert holding(server.directory) == []
    assert [line for line in commands() if CANARY in line] == []


def commands() -> list[str]:
    """Every command line there is."""
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
