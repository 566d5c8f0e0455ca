"""A real service on a free port with a real Redis, and runs on disk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_core.config_loader import parse_config
from model_core.data.sources.registry import revision_of
from model_core.hf.export_folder import FILES, WEIGHTS
from model_core.storage.dataset import EXAMPLES, MANIFEST, SPLITS, Dataset
from model_core.storage.events import EventWriter
from model_core.storage.files import now, write_json
from model_core.storage.run import Run
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.fake_host import HEADS, WAIT_S, FakeHost, Served
from worker.jobs.redis_client import Registry, connect
from worker.jobs.schemas import Claim, Outcome, WorkerView
from worker.jobs.worker_store import WorkerStore

DATASET = "words"
NO_TENSORS = b"\2\0\0\0\0\0\0\0{}"  # a file of safetensors
TREE: dict[str, Any] = {
    "experiment_name": "tiny",
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": list(HEADS), "vocab_size": 512, "block_size": 64},
    "training": {
        "batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "max_steps": 3, "warmup_steps": 1,
    },
    "data": {"dataset": DATASET, "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}},
}  # fmt: skip


TOKENIZER = {"kind": "bpe", "n_vocab": 512, "sha256": "0" * 64, "file": "tokenizer.json", "asked": "bpe:512"}


def manifest(dataset: Dataset, **facts: Any) -> dict[str, Any]:
    """What preparation would have written of such files."""
    one = {"documents": 10, "tokens": 200, "text_bytes": 600, "size_bytes": 528, "sha256": "0" * 64, "dtype": "uint16"}
    made = {
        "schema_version": 1, "name": dataset.name, "source": "stories", "seed": 1337,
        "revision": revision_of("stories", seed=1337),
        "text_column": "text", "created_at": now(), "split": [0.9, 0.09, 0.01], "dedupe": False,
        "tokenizer": {"kind": "gpt2", "n_vocab": 50257, "sha256": "0" * 64, "file": "tokenizer.json", "asked": "gpt2"},
        "splits": {split: {"file": dataset.split(split).name, **one} for split in SPLITS},
        "examples": {"file": EXAMPLES, "index": "test_examples_index.npy", "count": 10, "size_bytes": 1, "sha256": ""},
    }  # fmt: skip
    return {**made, **facts}


class Site:
    """A running service, and the rooms around it as a test needs them."""

    def __init__(self, data: Path, redis_url: str, **settings: Any) -> None:
        self.settings = ServiceSettings(data=data, redis_url=redis_url, **settings)
        self.layout = self.settings.layout
        self._redis = connect(redis_url, for_api=False)
        self.store, self.registry = WorkerStore(self._redis, self.settings), Registry(self._redis)
        self._served = Served(create_app(self.settings))
        self.url = self._served.url
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)  # less than a ping
        self._hosts: list[FakeHost] = []
        self.add_dataset(DATASET, tokenizer=TOKENIZER)

    def add_dataset(self, name: str, **facts: Any) -> Dataset:
        """Files as they are when a dataset is ready: with facts, a manifest says that it was prepared here."""
        dataset = Dataset.named(name, self.layout.dataset(name))
        dataset.directory.mkdir(parents=True)
        for split in SPLITS:
            np.save(dataset.split(split), np.arange(200, dtype=np.uint16))
        write_json(dataset.directory / EXAMPLES, [{"id": n, "text": f"text {n}", "tokens": [n]} for n in range(10)])
        if facts:
            write_json(dataset.directory / MANIFEST, manifest(dataset, **facts))
        return dataset

    def submit(self, name: str = "tiny", **sections: Any) -> dict[str, Any]:
        """Submit a tiny training."""
        reply = self.http.post("/jobs", json={**TREE, "experiment_name": name, **sections})
        assert reply.status_code == 202, reply.text
        job: dict[str, Any] = reply.json()
        return job

    def claim(self) -> Claim:
        """Take the first job, as a worker would."""
        claim = self.store.claim("token", WorkerView(id="w1", host="here"))
        assert claim is not None
        return claim

    def finish(self, claim: Claim, result: Any = "succeeded") -> None:
        self.store.finish(claim, Outcome(result, "ended"))

    def writer(self, claim: Claim) -> EventWriter:
        """The event file of a job's run."""
        path = self.layout.run(claim.run)
        path.mkdir(parents=True, exist_ok=True)
        Run(path).begin_attempt(claim.attempt, claim.id)
        return EventWriter(self.layout.run(claim.run) / "events.jsonl", claim.attempt)

    def make_run(
        self, name: str = "tiny", *, job_id: str | None = None, checkpoint: bytes | None = b"weights", **sections: Any
    ) -> Run:
        """A run as a training leaves it."""
        run = Run.create(self.layout.run(name), parse_config({**TREE, "experiment_name": name, **sections}).config)
        run.begin_attempt(1, job_id)
        if checkpoint is not None:
            self.publish(run, checkpoint)
        return run

    def lose_redis(self) -> None:
        """Remove every record that Redis has."""
        self._redis.flushdb()

    def publish(self, run: Run, data: bytes) -> str:
        """Replace the best checkpoint; its hash."""
        published = run.publish(
            "model_best.pt", lambda file: file.write(data), attempt=1, step=3, full=False, loss=1.0, val_loss=1.0
        )
        return published.sha256

    def add_export(self, run: Run) -> Path:
        """The folder of the best checkpoint as a job leaves it, for a model without tensors."""
        folder = self.layout.export(run.name, "model_best.pt", run.resolve("best").sha256)
        assert folder is not None
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_bytes(b"{}")
        (folder / WEIGHTS).write_bytes(NO_TENSORS)
        return folder

    def add_host(self, name: str = "one") -> FakeHost:
        """An inference process that announces itself."""
        host = FakeHost(self.layout, name)
        self._hosts.append(host)
        self.registry.register("inference", name, {"url": host.url, "device": "cpu", "models": []}, 60)
        return host

    def empty(self) -> None:
        """Forget everything; the service goes on."""
        for host in self._hosts:
            host.stop()
        self._hosts.clear()
        shutil.rmtree(self.settings.data, ignore_errors=True)
        self.settings.data.mkdir()
        self.add_dataset(DATASET, tokenizer=TOKENIZER)

    def close(self) -> None:
        self.http.close()
        self._served.stop()
        self._redis.connection_pool.disconnect()
        self.empty()


@pytest.fixture
def make_site(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Site]]:
    """Start a service of a test's own, with its own settings or Redis."""
    sites: list[Site] = []

    def make(redis_url: str = redis_url, **settings: Any) -> Site:
        sites.append(Site(tmp_path / f"data{len(sites)}", redis_url, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture(scope="session")
def _shared_site(_shared_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("service") / "data", _shared_redis.url)
    yield site
    site.close()


@pytest.fixture
def site(_shared_site: Site, redis_url: str) -> Iterator[Site]:
    """A running service without jobs, runs or inference processes; the server itself is shared."""
    _shared_site.empty()
    yield _shared_site
    _shared_site.empty()
