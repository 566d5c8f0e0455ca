"""A store on a real Redis, job specs for it, and real worker processes."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from model_core.config import BpeTokenizer
from model_core.data.ensure import prepare
from tests.polling import eventually
from tests.worker.harness import DATASET, TOKENIZER, Child, Site, fake_tree, lay_out
from worker.jobs.redis_client import connect
from worker.jobs.schemas import Claim, WorkerView
from worker.jobs.settings import JobSettings
from worker.jobs.spec import JobSpec, parse_spec
from worker.jobs.worker_store import WorkerStore


@pytest.fixture
def aged_redis_url(redis_url: str) -> str:
    """An empty Redis that has been up for a second, so that leases below it may be reaped."""
    with connect(redis_url, for_api=False) as client:
        eventually(lambda: client.info("server")["uptime_in_seconds"] >= 1)
    return redis_url


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    return lambda run, **options: parse_spec(fake_tree(run, **options))


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


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred short documents, prepared once for every test with the real trainer."""
    words, rng = "the cat dog sat ran on a mat hill and saw red blue bird tree".split(), random.Random(0)
    documents = [" ".join(rng.choices(words, k=rng.randint(20, 40))).capitalize() + "." for _ in range(300)]
    home = tmp_path_factory.mktemp("dataset")
    (home / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    tokenizer = BpeTokenizer(type="bpe", vocab_size=TOKENIZER["vocab_size"])
    prepare(f"file:{home / 'text.txt'}", home / DATASET, name=DATASET, tokenizer=tokenizer)
    return home / DATASET


@pytest.fixture(scope="module")
def make_site(
    tmp_path_factory: pytest.TempPathFactory, connected: Callable[..., redis.Redis], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Site]]:
    """Lay out a place where jobs run: ``make_site(redis_url, child="real", lease_s=3.0)``."""
    sites: list[Site] = []

    def make(redis_url: str, *, child: Child = "fake", **settings: object) -> Site:
        data, client = tmp_path_factory.mktemp("data"), connected(redis_url, for_api=False)
        if child == "real":
            lay_out(data, request.getfixturevalue("tiny_dataset"))
        sites.append(Site(data, client, redis_url, child=child, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.terminate()
    for site in sites:
        site.close()
