"""A store on a real Redis, requests to fill it, and real worker processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from worker.jobs.connection import connect
from worker.jobs.job import Claim, Job, WorkerView
from worker.jobs.queue import wake
from worker.jobs.settings import JobSettings
from worker.jobs.spec import JobSpec, parse_spec
from worker.jobs.worker_store import WorkerStore

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 30.0


def tiny_tree(run: str, *, steps: int = 3, step_s: float = 0.01, **job: object) -> dict[str, object]:
    """A request; to the fake child the learning rate is the time a step takes."""
    training = {"max_steps": steps, "warmup_steps": 0, "max_lr": step_s, "min_lr": 0.0}
    return {"experiment_name": run, "training": training, "job": job}


def eventually(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


@pytest.fixture
def aged_redis_url(redis_url: str) -> str:
    """An empty Redis that has been up for a second, so that leases below it may be reaped."""
    with connect(redis_url, for_api=False) as client:
        eventually(lambda: client.info("server")["uptime_in_seconds"] >= 1)
    return redis_url


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    return lambda run, **options: parse_spec(tiny_tree(run, **options))


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> JobSettings:
    return JobSettings(data=tmp_path, redis_url=redis_url)


@pytest.fixture
def store(settings: JobSettings, connected: Callable[..., redis.Redis]) -> WorkerStore:
    return WorkerStore(connected(settings.redis_url, for_api=False), settings)


@pytest.fixture
def claim_one(store: WorkerStore) -> Callable[..., Claim | None]:
    """Claim as a worker without GPUs, unless told otherwise."""

    def claim(owner: str = "token", *, idle: tuple[str, ...] = (), gpus: int = 0, worker: str = "w1") -> Claim | None:
        return store.claim(owner, WorkerView(id=worker, host="here"), idle=idle, gpus=gpus)

    return claim


class Site:
    """A data root, its store, and worker processes whose child is tests/worker/fake_child.py."""

    def __init__(self, data: Path, client: redis.Redis, redis_url: str, **settings: object) -> None:
        self.settings = JobSettings(data=data, redis_url=redis_url, **settings)
        self.store = WorkerStore(client, self.settings)
        self._settings = settings
        self.workers: list[subprocess.Popen[bytes]] = []
        self._families: list[psutil.Process] = []

    def start_worker(self, *, slots: int = 1) -> subprocess.Popen[bytes]:
        """Start a real Celery worker."""
        name = f"w{len(self.workers)}-{os.getpid()}@test"
        environment = {f"HEADCOUNT_{key.upper()}": str(value) for key, value in self._settings.items()}
        environment |= {
            "HEADCOUNT_DATA": str(self.settings.data),
            "HEADCOUNT_REDIS_URL": self.settings.redis_url,
            "HEADCOUNT_KIND_MODULES": '{"train": "fake_child", "test": "fake_child"}',
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent))),
        }
        options = ["-P", "threads", "-c", str(slots), "-n", name, "--without-gossip", "--without-mingle", "-l", "INFO"]
        with (self.settings.data / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "worker.tasks", "worker", *options],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    eventually = staticmethod(eventually)

    def submit(self, run: str, *, ring: bool = True, **options: object) -> str:
        """Submit a job, with or without a wake-up."""
        job_id = self.store.submit(parse_spec(tiny_tree(run, **options)), fingerprint=run).job.id
        assert not ring or wake(self.settings.redis_url)
        return job_id

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def until(self, job_id: str, status: str, timeout_s: float = WAIT_S) -> Job:
        """Wait for a status."""
        try:
            eventually(lambda: self.job(job_id).status == status, timeout_s)
        except AssertionError:
            log = (self.settings.data / "worker.log").read_text()[-4000:]
            raise AssertionError(f"{self.job(job_id)!r}\n{log}") from None
        return self.job(job_id)

    def until_step(self, job_id: str, step: int) -> int:
        """Wait until the child has done so many steps.

        Returns:
            Its pid.
        """
        eventually(lambda: self.job(job_id).progress.step >= step)
        worker = self.job(job_id).worker
        assert worker is not None
        assert worker.pid is not None
        return worker.pid

    def events(self, run: str) -> list[dict[str, object]]:
        from model_core.records.events import read_events

        return list(read_events(self.settings.layout.run(run) / "events.jsonl"))

    def terminate(self) -> None:
        self._families = [child for worker in self.workers for child in _children(worker.pid)]
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()

    def close(self) -> None:
        for worker in self.workers:
            try:
                worker.wait(timeout=20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for child in self._families:
            if child.is_running():
                child.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def make_site(
    tmp_path_factory: pytest.TempPathFactory, connected: Callable[..., redis.Redis]
) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(redis_url: str, **settings: object) -> Site:
        sites.append(Site(tmp_path_factory.mktemp("data"), connected(redis_url, for_api=False), redis_url, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.terminate()
    for site in sites:
        site.close()
