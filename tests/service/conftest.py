"""A real service on a free port with a real Redis, runs on disk, and an inference process that only pretends."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from model_core.data.sources.opening import revision_of
from model_core.hf.contents import FILES, WEIGHTS
from model_core.loading import parse_config
from model_core.records.attention import AttentionRecord, RecordWriter, home_of
from model_core.records.dataset import MANIFEST, SPLITS, Dataset
from model_core.records.events import EventWriter
from model_core.records.examples import EXAMPLES
from model_core.records.files import Layout, now, write_json
from model_core.records.run import Run
from service.app import create_app
from service.settings import ServiceSettings
from worker.jobs.connection import connect
from worker.jobs.exchange import Claim, Outcome
from worker.jobs.job import WorkerView
from worker.jobs.registry import Registry
from worker.jobs.worker_store import WorkerStore

WAIT_S = 10.0
DATASET = "words"
HEADS = (4, 2)
NO_TENSORS = b"\2\0\0\0\0\0\0\0{}"  # a file of safetensors
TREE: dict[str, Any] = {
    "experiment_name": "tiny",
    "model": {"n_layer": 2, "n_embd": 32, "n_head_list": list(HEADS), "vocab_size": 512, "block_size": 64},
    "training": {
        "batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "max_steps": 3, "warmup_steps": 1,
    },
    "data": {"dataset": DATASET, "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 512}},
}  # fmt: skip


def eventually(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)
    return found


class Served:
    """An ASGI application on a free loopback port, in a thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=WAIT_S)


class FakeHost:
    """Speaks the inference process' protocol; `prompt` decides what it does."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.asked: list[dict[str, Any]] = []
        self.left_alone = threading.Event()  # a client went away while it was served
        routes = [
            Route("/generate", self._generate, methods=["POST"]),
            Route("/capture", self._capture, methods=["POST"]),
        ]
        self._served = Served(Starlette(routes=routes))
        self.url = self._served.url

    def stop(self) -> None:
        self._served.stop()

    async def _generate(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        refusals = {"long": (422, "prompt_too_long"), "busy": (503, "inference_unavailable"), "odd": (500, "odd_code")}
        if asked["prompt"] in refusals:
            status, code = refusals[asked["prompt"]]
            return JSONResponse({"code": code, "detail": f"{self.name} refuses"}, status_code=status)
        if asked["stream"]:
            return StreamingResponse(self._pieces(asked), media_type="application/x-ndjson")
        if asked["prompt"] == "endless":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.left_alone.set()
        return JSONResponse(self._result(asked))

    async def _pieces(self, asked: dict[str, Any]) -> Any:
        try:
            for word in ("Once", " upon", " a time"):
                yield json.dumps({"index": 0, "text": word}).encode() + b"\n"
            if asked["prompt"] == "breaks":
                yield b'{"error": {"code": "cuda_oom", "detail": "no memory"}}\n'
                return
            while asked["prompt"] == "endless":
                yield b'{"index": 0, "text": "."}\n'
                await asyncio.sleep(0.02)
            yield json.dumps({"result": self._result(asked)}).encode() + b"\n"
        finally:
            if asked["prompt"] == "endless":
                self.left_alone.set()

    def _result(self, asked: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "text": "Once upon a time", "tokens": [1, 2], "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        kept = {name: asked[name] for name in ("run", "checkpoint", "prompt")}
        return {**kept, "step": 3, "seed": asked["seed"] or 7, "choices": [choice] * asked["n"], "usage": usage}

    async def _capture(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        if not asked["id"].isdecimal() or int(asked["id"]) > 9:
            return JSONResponse({"code": "example_not_found", "detail": "numbered 0 to 9"}, status_code=404)
        info = Run.open(self.layout.run(asked["run"])).resolve(asked["checkpoint"])
        most = asked["max_tokens"] or 5
        return JSONResponse(capture(self.layout, asked["run"], asked["id"], info.sha256, most=most).manifest)


def capture(layout: Layout, run: str, example: str, sha256: str, *, most: int = 5) -> AttentionRecord:
    """Write a record of made-up weights."""
    tokens = ["One", "·day", ",", "·a", "·cat"][:most]
    cut_from = 5 if most < 5 else None
    writer = RecordWriter(home_of(layout, run, example) / sha256[:8], len(HEADS))
    generator = np.random.default_rng(0)
    for heads in HEADS:
        weights = np.tril(generator.random((heads, len(tokens), len(tokens)))).astype(np.float32)
        writer.add(weights / weights.sum(axis=-1, keepdims=True))
    layers = [{"layer": i, "n_head": h, "head_dim": 32 // h, "png": f"layer{i:02d}.png"} for i, h in enumerate(HEADS)]
    return writer.finish(
        {
            "run": run, "id": example, "checkpoint": "model_best.pt", "step": 3, "sha256": sha256,
            "text": "One day, a cat",
            "tokens": tokens, "token_ids": [1, 2, 3, 4, 5][:most], "max_tokens": most, "truncated_from": cut_from,
            "block_size": 64,
            "layers": layers,
        }
    )  # fmt: skip


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
        self.add_dataset(DATASET)

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

    def make_run(self, name: str = "tiny", *, job_id: str | None = None, checkpoint: bytes | None = b"weights") -> Run:
        """A run as a training leaves it."""
        run = Run.create(self.layout.run(name), parse_config({**TREE, "experiment_name": name}).config)
        run.begin_attempt(1, job_id)
        if checkpoint is not None:
            self.publish(run, checkpoint)
        return run

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
        self.registry.announce("inference", name, {"url": host.url, "device": "cpu", "models": []}, 60)
        return host

    def empty(self) -> None:
        """Forget everything; the service goes on."""
        for host in self._hosts:
            host.stop()
        self._hosts.clear()
        shutil.rmtree(self.settings.data, ignore_errors=True)
        self.settings.data.mkdir()
        self.add_dataset(DATASET)

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
