"""End-to-end test of `headcount reindex` after Redis lost its data."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_core.storage.events import read_events

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EQUAL = (
    "id",
    "kind",
    "run",
    "status",
    "attempt",
    "created_at",
    "progress",
    "error",
    "priority",
    "metadata",
    "depends_on",
)


def headcount(*arguments: str, url: str) -> str:
    command = [sys.executable, "-m", "headcount", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADCOUNT_")}
    return subprocess.run(
        command, env={**environment, "HEADCOUNT_URL": url}, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_reindex_brings_back_what_a_lost_redis_knew(serving, make_data_root, tiny, tmp_path: Path) -> None:
    data, log = make_data_root(), tmp_path / "up.log"
    with serving(data, log) as service:
        done = service.finished(service.submit({**tiny("done"), "job": {"metadata": {"who": "me"}}})["id"])
        cut = service.submit(tiny("cut", training={"max_steps": 1000}))["id"]
        service.until(cut, lambda job: job["progress"]["step"] > 5)
    shutil.rmtree(data / "redis")

    with serving(data, log) as service:
        assert (
            f"has records of 3 job(s), but Redis knows none: to restore them, run headcount reindex --data {data}"
            in (log.read_text())
        )
        assert service.client.get(f"/jobs/{done['id']}").status_code == 404
        said = headcount("reindex", "--data", str(data), url=service.url)
        [made] = service.client.get("/jobs", params={"kind": "prepare"}).json()["data"]
        assert said.splitlines()[-1] == "3 restored, 0 there already, 0 skipped, 0 unreadable"
        assert sorted(said.splitlines()[:-1]) == sorted(
            [f"{made['id']}  text  succeeded", f"{done['id']}  done  succeeded", f"{cut}  cut  paused"]
        )
        restored = service.job(done["id"])
        assert {key: restored[key] for key in EQUAL} == {key: done[key] for key in EQUAL}
        assert headcount("resume", cut, url=service.url) == f"{cut}  queued  run cut\n"
        assert service.finished(cut)["attempt"] == 2
        assert "attempt 2" in headcount("job", cut, url=service.url)
        assert headcount("queue", url=service.url) == "0 running, 0 queued: 0 ready, 0 waiting for others\n"
        assert " 0/1 " in headcount("workers", url=service.url)
        headcount("delete", done["id"], "--artifacts", url=service.url)
        assert not (data / "exp" / "done").exists()
        said = headcount("reindex", "--data", str(data), url=service.url)
        there = [f"{made['id']}  text  succeeded, there already", f"{cut}  cut  succeeded, there already"]
        assert said.splitlines()[:-1] == there
    events = list(read_events(data / "exp" / "cut" / "events.jsonl"))
    assert [event["step"] for event in events if event["type"] == "step"] == list(range(1, 1001))
