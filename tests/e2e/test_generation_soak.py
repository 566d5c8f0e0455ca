"""Generation under random load: nothing leaks, no text changes, and nobody waits longer than the deadline."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from headcount import embedded_redis
from model_core.checkpoint import parameters_state, writer
from model_core.config_loader import parse_config
from model_core.gpt import GPT
from model_core.storage.checkpoints import BEST, FINAL
from model_core.storage.files import Layout
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer, train_bpe
from tests.polling import eventually
from worker.jobs.redis_client import connect

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

REQUESTS, FIRST, AT_ONCE, DROPPED = 500, 100, 24, 0.3
SEEDED, MOST_MEMORY = 20, 1.05
DEADLINE_S = 20.0
VOCABULARY, IDS = 280, 256  # every byte is a token
WORDS = "One day a little cat went to the garden and saw a red ball under the old tree".split()
ODD = ["", " ", "\u2028", "\u2029 x", "\x85", "é漢字🙂", "\r\n\x00\ufeff"]


def publish(layout: Layout, tokenizer: Tokenizer, run: str, file: str, *, seed: int, step: int) -> None:
    """Write a checkpoint of random parameters, whose texts hardly ever end."""
    model = {"n_layer": 2, "n_embd": 64, "vocab_size": 320, "block_size": 256, "n_head_list": [4, 2]}
    training = {"batch_size": 2, "sequence_length": 32, "total_batch_size": 64, "warmup_steps": 1, "max_steps": 4}
    data = {"tokenizer": {"type": "bpe", "vocab_size": VOCABULARY}}
    config = parse_config({"experiment_name": run, "model": model, "training": training, "data": data}).config
    torch.manual_seed(seed)
    gpt = GPT(config.model)
    with torch.no_grad():
        gpt.transformer["wte"].weight[tokenizer.eot] = 0
    opened = Run.open(layout.run(run)) if layout.run(run).exists() else Run.create(layout.run(run), config)
    state = parameters_state(gpt, config, tokenizer, step)
    opened.publish(file, writer(state), attempt=1, step=step, full=False, loss=1.0, val_loss=1.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([" ".join(WORDS)] * 3, VOCABULARY)


class Site:
    """The service, what its processes hold, and random requests to its doors."""

    def __init__(self, service: Any) -> None:
        self.url, self.data, self._up = service.url, service.data, psutil.Process(service.pid)
        self.layout = Layout.under(self.data)
        self._redis_url = embedded_redis.socket_url(embedded_redis.socket_of(self.data))
        paths = httpx.get(f"{self.url}/openapi.json").json()["paths"]
        self.doors = [door for door in DOORS if door.__name__.strip("_") in {_name(path) for path in paths}]

    def process(self, module: str) -> psutil.Process:
        """The process that runs a module."""
        for process in self._up.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:3] == ["-m", module]:
                    return process
        raise AssertionError(f"no process runs {module}")

    @property
    def healthz(self) -> dict[str, Any]:
        log = (self.data / "logs" / "inference.log").read_text()
        url = re.findall(r"inference ready url=(\S+)", log)[-1]
        return httpx.get(f"{url}/healthz", timeout=10).json()

    def keys(self) -> set[str]:
        with connect(self._redis_url, for_api=False) as client:
            return {str(key) for key in client.scan_iter()}

    def is_idle(self) -> bool:
        seen = self.healthz
        return not seen["open_requests"] and not any(
            model.get("rows") or model.get("waiting") for model in seen["models"]
        )

    def connections(self) -> int:
        """Established connections of the API and of the inference process."""
        both = (self.process("uvicorn"), self.process("worker.inference"))
        return sum(c.status == psutil.CONN_ESTABLISHED for process in both for c in process.net_connections())

    def memory(self) -> dict[str, int]:
        return {name: self.process(name).memory_info().rss for name in ("uvicorn", "worker.inference")}


def _name(path: str) -> str:
    return path.strip("/").replace("/", "_")


def _sampling(rng: random.Random) -> dict[str, Any]:
    """A random choice of parameters, each with a random value."""
    new = rng.randint(1, 40)
    values: dict[str, Callable[[], Any]] = {
        "min_new_tokens": lambda: rng.randint(0, new),
        "temperature": lambda: rng.choice([0, 0.7, 1.0, 3.0]),
        "top_k": lambda: rng.choice([0, 1, 5, 50, 1000]),
        "top_p": lambda: rng.choice([0.1, 0.9, 1.0]),
        "min_p": lambda: rng.choice([0.0, 0.05, 0.9]),
        "repetition_penalty": lambda: rng.choice([0.5, 1.0, 1.3]),
        "presence_penalty": lambda: rng.uniform(-2, 2),
        "frequency_penalty": lambda: rng.uniform(-2, 2),
        "logit_bias": lambda: {str(rng.randrange(IDS)): rng.uniform(-100, 100) for _ in range(5)},
        "ignore_eos": lambda: True,
        "seed": lambda: rng.randrange(2**32),
        "n": lambda: rng.randint(1, 6),
        "stop": lambda: rng.sample([" a", "the", "\u2028", "day a"], 2),
        "stop_token_ids": lambda: rng.sample(range(IDS), 3),
        "logprobs": lambda: rng.randint(0, 5),
    }
    chosen = rng.sample(sorted(values), rng.randint(0, len(values)))
    return {"max_new_tokens": new, **{name: values[name]() for name in chosen}}


def _prompt(rng: random.Random) -> str:
    return rng.choice([" ".join(rng.choices(WORDS, k=rng.randint(1, 30))), rng.choice(ODD)])


def _model(rng: random.Random) -> dict[str, str]:
    return {"run": rng.choice(["one", "two"]), "checkpoint": rng.choice(["best", "final"])}


# a door makes a random request: method, path, and the arguments of httpx


def generate(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    asked = {**_model(rng), "prompt": _prompt(rng), **_sampling(rng), "stream": rng.random() < 0.5}
    accept = "application/json" if asked["stream"] else rng.choice(["application/json", "text/plain"])
    if rng.random() < 0.2:
        params = {name: asked[name] for name in ("run", "checkpoint", "prompt", "max_new_tokens")}
        return "GET", "/generate", {"params": params, "headers": {"Accept": accept}}
    if asked["stream"]:
        accept = "text/event-stream"
    return "POST", "/generate", {"json": asked, "headers": {"Accept": accept}}


def v1_completions(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    model, asked = _model(rng), _sampling(rng)
    renamed = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    prompt = rng.choice([_prompt(rng), [_prompt(rng), "x"], [1, 2, 3], [[5], [6, 7]]])
    fields = {renamed.get(name, name): value for name, value in asked.items()}
    more = {"model": f"{model['run']}:{model['checkpoint']}", "prompt": prompt, "stream": rng.random() < 0.5}
    return "POST", "/v1/completions", {"json": {**fields, **more, "echo": rng.random() < 0.3}}


def tokenize(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/tokenize", {"json": {**_model(rng), "text": _prompt(rng)}}


def detokenize(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    tokens = [rng.randrange(IDS) for _ in range(20)]
    return "POST", "/detokenize", {"json": {**_model(rng), "tokens": tokens}}


def score(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    asked: dict[str, Any] = {**_model(rng), "bos": rng.choice(["none", "eot"])}
    if rng.random() < 0.5:
        texts = [_prompt(rng), [1, 2, 3], {"text": " a ball", "prefix": "One day"}]
        return "POST", "/score", {"json": {**asked, "texts": texts, "detail": rng.random() < 0.5, "stride": 32}}
    return "POST", "/score", {"json": {**asked, "pairs": [{"good": _prompt(rng) + "x", "bad": "a cat", "prefix": ""}]}}


DOORS = (generate, v1_completions, tokenize, detokenize, score)


async def send(client: httpx.AsyncClient, request: tuple[str, str, dict[str, Any]]) -> tuple[int, bytes]:
    method, path, options = request
    async with client.stream(method, path, **options) as reply:
        return reply.status_code, await reply.aread()


async def soak(site: Site, rng: random.Random, count: int, seeded: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Send random requests, some of them dropped; returns what went wrong. The seeded ones are among them."""
    wrong: list[tuple[Any, ...]] = []
    limit, expected = asyncio.Semaphore(AT_ONCE), iter(seeded)

    async def ask() -> None:
        request, drop_after_s = rng.choice(site.doors)(rng), rng.choice([0.0, 0.02, 0.1, 0.5])
        is_dropped = rng.random() < DROPPED
        async with limit:
            try:
                async with asyncio.timeout(drop_after_s if is_dropped else 120):
                    status, body = await send(client, request)
            except TimeoutError:
                assert is_dropped
                return
            if status != 200 or b"event: error" in body or (b'"error"' in body and request[1].startswith("/v1")):
                wrong.append((request, status, body[:500]))

    async def repeat(known: dict[str, Any]) -> None:
        async with limit:
            status, body = await send(client, ("POST", "/generate", {"json": known["asked"]}))
            if status != 200 or json.loads(body)["choices"] != known["choices"]:
                wrong.append((known["asked"], status, body[:500]))

    limits = httpx.Limits(max_connections=None)
    client = httpx.AsyncClient(base_url=site.url, timeout=120, limits=limits)
    async with client, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(ask())
            if rng.random() < 0.1 and (known := next(expected, None)):
                tasks.create_task(repeat(known))
        for known in expected:
            tasks.create_task(repeat(known))
    return wrong


def alone(site: Site, rng: random.Random) -> list[dict[str, Any]]:
    """Seeded requests, with what they give one after the other."""
    found = []
    for number in range(SEEDED):
        model = {"run": ["one", "two"][number % 2], "checkpoint": "best"}
        asked = {**model, "prompt": " ".join(rng.choices(WORDS, k=number + 1)), "max_new_tokens": 30, "logprobs": 2}
        asked |= {"seed": number, "n": 1 + number % 3, "temperature": [1.0, 0.0, 1.5][number % 3]}
        reply = httpx.post(f"{site.url}/generate", json=asked, timeout=120)
        assert reply.status_code == 200, reply.text
        found.append({"asked": asked, "choices": reply.json()["choices"]})
    return found


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer, make_data_root: Callable[[], Path]) -> Path:
    root = make_data_root()
    for number, run in enumerate(("one", "two")):
        for file in (BEST, FINAL):
            publish(Layout.under(root), tokenizer, run, file, seed=number, step=number + 1)
    return root


@pytest.fixture(scope="module")
def site(data: Path, serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # a small prefix cache, because one that fills would count as a leak
    settings = {"HEADCOUNT_INFERENCE_DEADLINE_S": str(DEADLINE_S), "HEADCOUNT_INFERENCE_PREFIX_CACHE_MB": "1"}
    with serving(data, tmp_path_factory.mktemp("soak") / "up.log", **settings) as service:
        yield Site(service)


def is_within(factor: float, before: dict[str, int], after: dict[str, int]) -> bool:
    """Whether no process has more memory than a factor of what it had."""
    return all(after[name] <= factor * before[name] for name in before)


def test_random_requests_leave_nothing_behind(site: Site, tokenizer: Tokenizer) -> None:
    rng = random.Random(17)
    known, keys, connections = alone(site, rng), site.keys(), site.connections()

    wrong = asyncio.run(soak(site, rng, FIRST, known[: SEEDED // 5]))
    eventually(site.is_idle, 60)
    memory = site.memory()
    publish(site.layout, tokenizer, "one", FINAL, seed=9, step=9)
    wrong += asyncio.run(soak(site, rng, REQUESTS - FIRST, known[SEEDED // 5 :]))

    assert wrong == []
    eventually(site.is_idle, 60)
    eventually(lambda: site.connections() <= connections, 60)
    eventually(lambda: site.keys() == keys, 60, describe=lambda: str(site.keys() ^ keys))
    eventually(lambda: is_within(MOST_MEMORY, memory, site.memory()), 20, describe=lambda: f"{memory} {site.memory()}")
    totals = site.healthz["totals"]
    assert totals["submitted"] == totals["finished"] + totals["cancelled"]
    assert (totals["open_requests"], totals["failed"]) == (0, 0)
    assert totals["cancelled"] > 0


async def _under_load(site: Site, pid: int) -> list[tuple[int, float, bytes]]:
    """Long generations, plain and streamed; the inference process is killed while they run."""

    async def ask(number: int) -> tuple[int, float, bytes]:
        asked = {"run": "one", "prompt": "One day", "max_new_tokens": 200, "n": 4, "ignore_eos": True, "seed": number}
        asked["stream"] = number % 2 == 0
        began = time.monotonic()
        status, body = await send(client, ("POST", "/generate", {"json": asked}))
        return status, time.monotonic() - began, body

    async with httpx.AsyncClient(base_url=site.url, timeout=10 * DEADLINE_S) as client:
        asked = [asyncio.create_task(ask(number)) for number in range(16)]
        await asyncio.to_thread(eventually, lambda: site.healthz["open_requests"] >= 8)
        os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*asked)


def test_nobody_waits_longer_than_the_deadline_when_the_process_is_killed(site: Site) -> None:
    asked = {"run": "two", "prompt": "One day", "max_new_tokens": 20, "seed": 3}
    before = httpx.post(f"{site.url}/generate", json=asked, timeout=60).json()["choices"]

    def answers() -> bool:
        reply = httpx.post(f"{site.url}/generate", json=asked, timeout=60)
        return reply.status_code == 200 and reply.json()["choices"] == before

    for _ in range(2):
        replies = asyncio.run(_under_load(site, site.process("worker.inference").pid))
        assert {status for status, _, _ in replies} <= {200, 503}
        assert max(seconds for _, seconds, _ in replies) < DEADLINE_S
        broken = [body for status, _, body in replies if status == 200 and b"event: end" not in body]
        assert all(b"event: error" in body or b'"choices"' in body for body in broken)
        eventually(answers, 60)
