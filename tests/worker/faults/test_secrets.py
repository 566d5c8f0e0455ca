"""A canary in the environment of worker and API: it may stand nowhere that somebody reads."""

from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e

CANARY = "hf_CanaryInTheMine"


@pytest.mark.parametrize(
    ("token", "is_handed_on"),
    [(CANARY, True), pytest.param(f"{CANARY}\nsecond line", False, marks=pytest.mark.slow)],
)
def test_a_token_stands_in_no_log_status_spec_or_error(
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

    answers = [text for job in jobs.values() for text in told(site.url, f"/jobs/{job}")]
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
