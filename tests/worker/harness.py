"""A data root with its store, and the real workers and API that share it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import redis

from model_core.data.dataset_spec import DatasetSpec
from model_core.storage.events import read_events
from tests.polling import eventually
from tests.process import free_port
from tests.worker.event_log import EventLog
from worker.jobs import commands
from worker.jobs.celery_app import wake
from worker.jobs.redis_client import Registry
from worker.jobs.schemas import Job, Rejection, Submission
from worker.jobs.settings import JobSettings
from worker.jobs.spec import JobSpec, parse_spec
from worker.jobs.store import JobStore
from worker.jobs.worker_store import WorkerStore

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 60.0
DATASET = "text"
TOKENIZER = {"type": "bpe", "vocab_size": 300}
NO_CHANGES: Mapping[str, dict[str, Any]] = {}
FAKES = '{"train": "fake_child", "test": "fake_child"}'

Child = Literal["fake", "real"]
Tree = dict[str, Any]


def fake_tree(run: str, *, steps: int = 3, step_s: float = 0.01, **job: object) -> Tree:
    """A request; to the fake child the learning rate is the time a step takes."""
    training = {"max_steps": steps, "warmup_steps": 0, "max_lr": step_s, "min_lr": 0.0}
    return {"experiment_name": run, "training": training, "job": job}


def real_tree(run: str, *, steps: int = 3, step_s: float = 0.01, **job: object) -> Tree:
    """A request for a real training that is as short; a micro batch takes about a millisecond."""
    micro_batches = max(1, round(step_s * 1000))
    return {
        "experiment_name": run,
        "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300, "block_size": 32},
        "training": {
            "batch_size": 2, "sequence_length": 16, "total_batch_size": 32 * micro_batches,
            "max_lr": 0.01, "min_lr": 0.001, "warmup_steps": 2, "max_steps": steps,
        },
        "data": {"dataset": DATASET, "tokenizer": TOKENIZER},
        "evaluation": {
            "val_loss_every": 20, "val_max_steps": 1, "sample_num": 0,
            "checkpoint_every": 5, "max_checkpoints_to_keep": 3,
        },
        "device": {"device": "cpu", "dtype": "float32", "threads": 1},
        "job": job,
    }  # fmt: skip


def submit_job(
    store: JobStore,
    spec: JobSpec,
    *,
    fingerprint: str,
    key: str | None = None,
    preparation: DatasetSpec | None = None,
) -> Submission:
    """Submit a job as the API does, without looking for its dataset on disk."""
    exists = spec.run is not None and store.settings.layout.run(spec.run).exists()
    call = commands.submission(
        spec,
        key=key,
        fingerprint=fingerprint,
        taken="exists" if exists else "",
        max_queued=store.settings.max_queued,
        preparation=preparation,
    )
    submitted = store.run(call)
    if isinstance(submitted, Rejection):
        raise store.name_conflict(spec, submitted)
    return submitted


class Site:
    """A data root, its store, and the workers and the API that share it.

    Args:
        data: The data root.
        client: Connected to `redis_url`.
        redis_url: Where the jobs are.
        child: ``fake``: tests/worker/fake_child.py does the work; ``real``: the trainer.
        settings: For all processes, without the prefix ``HEADCOUNT_``.
    """

    def __init__(
        self, data: Path, client: redis.Redis, redis_url: str, *, child: Child = "fake", **settings: object
    ) -> None:
        self.settings = JobSettings(data=data, redis_url=redis_url, **settings)
        self.store, self.registry = WorkerStore(client, self.settings), Registry(client)
        self.child, self._given = child, settings
        self._tree = fake_tree if child == "fake" else real_tree
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    # --- processes --------------------------------------------------------------------------------------------

    def start_worker(
        self, *, slots: int = 1, redis_url: str | None = None, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a real Celery worker.

        Args:
            slots: Jobs at once.
            redis_url: Another address of the same Redis.
            within: A command that runs the command behind it.
        """
        name = f"w{len(self.workers)}-{os.getpid()}@test"
        options = ["-P", "threads", "-c", str(slots), "-n", name, "--without-gossip", "--without-mingle", "-l", "INFO"]
        command = ("celery", "-A", "worker.tasks", "worker", *options)
        self.workers.append(self._start("worker", command, redis_url or self.settings.redis_url, within))
        return self.workers[-1]

    def start_api(self) -> subprocess.Popen[bytes]:
        """Start a real API at `url`, and wait until it answers."""
        options = ("--port", str(self._port), "--http", "h11", "--timeout-graceful-shutdown", "2")
        command = ("uvicorn", "service.app:app", *options)
        api = self._start("api", command, self.settings.redis_url)
        eventually(self.answers)
        return api

    def answers(self) -> bool:
        """Whether the API responds."""
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _start(
        self, name: str, command: tuple[str, ...], redis_url: str, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        environment = {f"HEADCOUNT_{key.upper()}": str(value) for key, value in self._given.items()}
        environment |= {"HEADCOUNT_DATA": str(self.settings.data), "HEADCOUNT_REDIS_URL": redis_url}
        environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent)))
        if self.child == "fake":
            environment["HEADCOUNT_KIND_MODULES"] = FAKES
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", *command], cwd=REPOSITORY, env={**os.environ, **environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def log(self, name: str) -> Path:
        """Log file of the workers or of the APIs."""
        return self.settings.data / f"{name}.log"

    def children(self) -> list[psutil.Process]:
        """Every live child, those of killed workers included: their command lines name the data root."""
        return [process for process in psutil.process_iter() if f"{self.settings.data}/jobs/" in _command_line(process)]

    # --- jobs -------------------------------------------------------------------------------------------------

    def tree(self, run: str, *, changes: Mapping[str, Tree] = NO_CHANGES, **options: object) -> Tree:
        """A configuration for this site's child; `changes` replace keys of sections."""
        tree = self._tree(run, **options)  # type: ignore[arg-type]
        return {**tree, **{section: {**tree.get(section, {}), **keys} for section, keys in changes.items()}}

    def submit(self, run: str, *, ring: bool = True, **options: object) -> str:
        """Submit a job, with or without a wake-up."""
        job_id = submit_job(self.store, parse_spec(self.tree(run, **options)), fingerprint=run).job.id
        if ring:
            self.wake()
        return job_id

    def wake(self) -> None:
        """Wake the workers."""
        assert wake(self.settings.redis_url)

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def until(self, job_id: str, status: str, timeout_s: float = WAIT_S) -> Job:
        """Wait for a status."""
        try:
            eventually(lambda: self.job(job_id).status == status, timeout_s)
        except AssertionError:
            raise AssertionError(f"{self.job(job_id)!r}\n{self.log('worker').read_text()[-4000:]}") from None
        return self.job(job_id)

    def until_step(self, job_id: str, step: int) -> psutil.Process:
        """Wait until a job has done so many steps.

        Returns:
            Its child.
        """
        eventually(lambda: self.job(job_id).progress.step >= step)
        return self.child_of(job_id)

    def child_of(self, job_id: str) -> psutil.Process:
        """The child of a job that is running; waits until it is known."""
        eventually(lambda: (worker := self.job(job_id).worker) is not None and worker.pid is not None)
        return psutil.Process(self.job(job_id).worker.pid)  # type: ignore[union-attr]

    def event_log(self, run: str) -> EventLog:
        """The events of a run."""
        return EventLog(list(read_events(self.settings.layout.run(run) / "events.jsonl")))

    def events(self, run: str) -> list[dict[str, Any]]:
        return self.event_log(run).events

    def said_by_child(self, job_id: str) -> str:
        """Output of the processes of a job."""
        assert self.settings.layout.jobs is not None
        return (self.settings.layout.jobs / job_id / "child.log").read_text()

    # --- the end ----------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()

    def kill(self) -> None:
        """End everything at once."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._kill_children()

    def close(self) -> None:
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._kill_children()

    def _kill_children(self) -> None:
        for child in self.children():
            child.kill()


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def lay_out(data: Path, dataset: Path) -> None:
    """Put a prepared dataset into a data root."""
    shutil.copytree(dataset, data / "datasets" / DATASET)
