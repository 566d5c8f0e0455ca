"""`headcount reindex` on a real Redis."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from headcount import embedded_redis
from headcount import reindex as command
from headcount.embedded_redis import NoRedis, lock_data_root
from headcount.reindex import lost_jobs, redis_of, reindex
from model_core.config import ExperimentConfig
from model_core.entrypoint import Attempt
from model_core.errors import InvalidParameter
from model_core.storage.files import Layout
from model_core.storage.run import Run
from tests.polling import eventually
from worker.jobs import commands
from worker.jobs.recovery import write_job_file
from worker.jobs.schemas import Claim
from worker.jobs.settings import JobSettings
from worker.jobs.store import JobStore

DONE, CUT = (f"job_{letter * 32}" for letter in "ab")


class Told:
    """What a person would read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def reindex(self, data: Path) -> int:
        self.lines, self.warnings = [], []
        return reindex(data, self.lines.append, self.warnings.append)


@pytest.fixture
def told() -> Told:
    return Told()


def leave(layout: Layout, job_id: str, run: str, created_at: int, outcome: str | None = None) -> None:
    """What worker and child leave of a job on disk."""
    claim = Claim(job_id, 1, "train", run, {"experiment_name": run}, request={"created_at": created_at})
    write_job_file(layout.jobs / job_id, claim, "running")
    made = Run.create(layout.run(run), ExperimentConfig(experiment_name=run), job_id)
    made.begin_attempt(1, job_id)
    if outcome:
        Attempt(made.path, 1).finish(outcome)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root with a job that succeeded and one that was cut off."""
    root = tmp_path / "data"
    leave(Layout.under(root), CUT, "cut", 2000)
    leave(Layout.under(root), DONE, "done", 1000, "succeeded")
    return root


@pytest.fixture
def given(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty Redis that HEADCOUNT_REDIS_URL names."""
    monkeypatch.setenv("HEADCOUNT_REDIS_URL", redis_url)
    return redis_url


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_REDIS_URL", raising=False)


@pytest.fixture
def store_of(data: Path, connected: Callable[..., redis.Redis]) -> Callable[[str], JobStore]:
    return lambda url: JobStore(connected(url, for_api=False), JobSettings(data=data, redis_url=url))


@contextlib.contextmanager
def served(data: Path, socket: Path) -> Iterator[None]:
    """The Redis of a service that is up."""
    program = embedded_redis.program(data, socket)
    process = subprocess.Popen(program.argv, cwd=program.cwd, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: embedded_redis.answers(embedded_redis.socket_url(socket)))
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_job_is_a_line_and_a_second_time_changes_nothing(data, given, told, store_of) -> None:
    assert told.reindex(data) == 0
    assert told.lines == [
        f"{DONE}  done  succeeded",
        f"{CUT}  cut  paused",
        "2 restored, 0 there already, 0 skipped, 0 unreadable",
    ]
    before = store_of(given).run(commands.page()).jobs()
    assert [job.id for job in before] == [CUT, DONE]
    assert told.reindex(data) == 0
    assert told.lines == [
        f"{DONE}  done  succeeded, there already",
        f"{CUT}  cut  paused, there already",
        "0 restored, 2 there already, 0 skipped, 0 unreadable",
    ]
    assert store_of(given).run(commands.page()).jobs() == before
    lines: list[str] = []
    assert reindex(data, lines.append, lines.append, as_json=True) == 0
    assert [json.loads(line) for line in lines] == [{"restored": 0, "there_already": 2, "skipped": 0, "unreadable": 0}]


def test_what_redis_knows_better_stays(data, given, told, store_of) -> None:
    told.reindex(data)
    store_of(given).request_action(CUT, "cancel")
    told.reindex(data)
    assert store_of(given).get(CUT).status == "cancelled"


def test_bad_files_are_named_and_the_rest_comes_back(data, given, told, store_of) -> None:
    layout = Layout.under(data)
    leave(layout, f"job_{'c' * 32}", "worse", 3000)
    (layout.jobs / DONE / "job.json").write_text("{")
    (layout.run("worse") / "outcome.json").write_text('{"attempt": 1}')
    assert told.reindex(data) == 1
    assert told.lines == [f"{CUT}  cut  paused", "1 restored, 0 there already, 0 skipped, 2 unreadable"]
    assert [str(layout.jobs / DONE / "job.json") in line for line in told.warnings] == [True, False]
    assert str(layout.run("worse") / "outcome.json") in told.warnings[1]


def test_a_run_that_a_process_holds_is_skipped_with_a_warning(data, given, told) -> None:
    with Run(Layout.under(data).run("cut")).lock():
        assert told.reindex(data) == 0
    assert told.lines[-1] == "1 restored, 0 there already, 1 skipped, 0 unreadable"
    assert told.warnings == [
        f"{CUT}: run 'cut' is held by another process; run headcount reindex again when it has ended"
    ]
    told.reindex(data)
    assert told.lines[1] == f"{CUT}  cut  paused"


def test_a_name_that_another_job_keeps_is_no_obstacle_to_the_others(data, given, told, store_of) -> None:
    told.reindex(data)
    layout = Layout.under(data)
    shutil.rmtree(layout.run("cut"))
    other = f"job_{'d' * 32}"
    claim = Claim(other, 1, "train", "cut", {"experiment_name": "cut"}, request={"created_at": 5})
    write_job_file(layout.jobs / other, claim, "running")
    assert told.reindex(data) == 0
    assert "'cut'" in told.warnings[0]


def test_without_a_data_root_there_is_nothing_to_do(tmp_path: Path, given, told) -> None:
    with pytest.raises(InvalidParameter, match="nowhere"):
        told.reindex(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_redis_that_is_named_and_silent_is_an_error(data, monkeypatch, told) -> None:
    monkeypatch.setenv("HEADCOUNT_REDIS_URL", "redis://127.0.0.1:9/0")
    with pytest.raises(NoRedis, match="HEADCOUNT_REDIS_URL"):
        told.reindex(data)


def test_while_the_service_is_down_its_redis_is_started_and_stopped(data, embedded, told, store_of) -> None:
    assert told.reindex(data) == 0
    socket = embedded_redis.socket_of(data)
    assert not embedded_redis.answers(embedded_redis.socket_url(socket))
    with lock_data_root(data), pytest.raises(FileNotFoundError):
        socket.lstat()
    with redis_of(data, told.warnings.append) as url:
        assert [job.id for job in store_of(url).run(commands.page()).jobs()] == [CUT, DONE]


def test_while_the_service_is_up_its_redis_is_used_and_left(data, embedded, told, store_of) -> None:
    socket = embedded_redis.socket_of(data)
    url = embedded_redis.socket_url(socket)
    with lock_data_root(data), served(data, socket):
        assert told.reindex(data) == 0
        assert embedded_redis.answers(url)
        assert [job.id for job in store_of(url).run(commands.page()).jobs()] == [CUT, DONE]


def test_a_data_root_that_is_held_without_a_redis_is_an_error(data, embedded, told, monkeypatch) -> None:
    monkeypatch.setattr(command, "_PATIENCE_S", 0.1)
    with lock_data_root(data), pytest.raises(NoRedis, match="HEADCOUNT_REDIS_URL"):
        told.reindex(data)


def test_lost_jobs_are_counted_only_when_redis_knows_none(data, given, told, store_of) -> None:
    assert lost_jobs(data, given) == 2
    told.reindex(data)
    assert lost_jobs(data, given) == 0
