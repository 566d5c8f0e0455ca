"""Speed of submitting, reading and starting jobs, compared with GET /healthz of the same server in the same run.

    make bench NAME=jobs

It starts Redis, uvicorn and, for the last figure, a worker, as `headcount up` does; this process is the client.
Each measurement alternates with /healthz by the same clients, and the ratio is the median over the rounds, because the
load of a machine varies. Exits 1 when a target is missed or a reply is unexpected.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from harness.http_clients import Round, request, send_requests
from harness.table import Row, header, print_rows

from headcount import embedded_redis
from headcount.processes import ProcessGroup, Program
from model_core.data.ensure import ensure_dataset
from worker.jobs import commands
from worker.jobs.redis_client import Registry, connect
from worker.jobs.settings import JobSettings
from worker.jobs.spec import parse_spec
from worker.jobs.store import JobStore

REPOSITORY = Path(__file__).parents[1]
CLIENTS, SUBMITS, SUBMIT_ROUNDS = 200, 2000, 5
JOBS, LIMIT, READS, READ_ROUNDS = 10_000, 50, 300, 6
STARTS = 10
BASELINE = "/healthz"
START_TIMEOUT_S = 60.0


class Installation:
    """Redis, the API and a worker on their own data root, as `headcount up` starts them.

    Args:
        data: Data root.
    """

    def __init__(self, data: Path) -> None:
        self._data, self._group = data, ProcessGroup(print)
        socket_file = embedded_redis.socket_path(data)
        self.redis_url = embedded_redis.socket_url(socket_file)
        self._environment = {
            **os.environ, "HEADCOUNT_DATA": str(data), "HEADCOUNT_REDIS_URL": self.redis_url, "HEADCOUNT_SLOTS": "1",
            "HEADCOUNT_KIND_MODULES": json.dumps({"train": "first_statement"}),
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "bench" / "child"))),
        }  # fmt: skip
        # with the dataset prepared, a submission is one round trip
        ensure_dataset(parse_spec(configuration(0)).config, JobSettings(data=data).layout)
        self._start("redis", embedded_redis.arguments(embedded_redis.server_binary(), socket_file), cwd=data)
        _until(lambda: embedded_redis.answers(self.redis_url), "Redis")
        self.settings = JobSettings(data=data, redis_url=self.redis_url)
        client = connect(self.redis_url, for_api=False)
        self.store, self.registry = JobStore(client, self.settings), Registry(client)

    def _start(self, name: str, argv: Sequence[str], *, cwd: Path = REPOSITORY) -> None:
        self._group.start(Program(name, tuple(argv), self._environment, self._data / f"{name}.log", cwd))

    def start_api(self) -> tuple[str, int]:
        """Start uvicorn and return its address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address: tuple[str, int] = probe.getsockname()
        options = ("--host", address[0], "--port", str(address[1]), "--http", "h11")
        self._start("api", (sys.executable, "-m", "uvicorn", "service.app:app", *options))
        _until(lambda: _answers(address), "the API")
        return address

    def start_worker(self) -> None:
        """Start a worker with one slot; its child processes only record when they started."""
        options = ("-P", "threads", "-c", "1", "-l", "INFO", "--without-gossip", "--without-mingle")
        self._start("worker", (sys.executable, "-m", "celery", "-A", "worker.tasks", "worker", *options))
        _until(lambda: self.registry.alive("workers"), "the worker")

    def stop(self) -> None:
        """Stop all processes, Redis last."""
        for names in (("api", "worker"), ("redis",)):
            self._group.stop(names, 15, lambda: False)
        self._group.close()


def configuration(number: int) -> dict[str, Any]:
    """Build the configuration of a job, as in the documentation."""
    training = {"max_steps": 60, "warmup_steps": 10}
    job = {"preset": "quickstart", "metadata": {"why": "to see how fast it goes"}}
    return {"experiment_name": f"run-{number}", "training": training, "job": job}


def submission(number: int) -> bytes:
    """Build the request that submits job number `number`."""
    body = json.dumps(configuration(number)).encode()
    return request("POST", "/jobs", body, Content_Type="application/json", Idempotency_Key=f"bench-{number}")


def measure_submits(address: tuple[str, int]) -> Iterator[Row]:
    """Measure submissions by many clients at once."""
    each = SUBMITS // SUBMIT_ROUNDS
    baselines, rounds = [], []
    send_requests(address, [request("GET", BASELINE)] * each, 200, clients=CLIENTS)  # warms up
    send_requests(address, [submission(-n) for n in range(1, 21)], 202, clients=1)
    for index in range(SUBMIT_ROUNDS):
        baselines.append(send_requests(address, [request("GET", BASELINE)] * each, 200, clients=CLIENTS))
        messages = [submission(n) for n in range(index * each, (index + 1) * each)]
        rounds.append(send_requests(address, messages, 202, clients=CLIENTS))
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(rounds, baselines, strict=True))
    rate, best = (statistics.median(r.rate for r in some) for some in (rounds, baselines))
    what = f"{CLIENTS} clients submit {SUBMITS:,} jobs"
    yield Row(what, f"{rate:,.0f}/s", f"{best:,.0f}/s", ratio, 0.3, higher_is_better=True)
    yield _errors("errors", rounds + baselines)


def fill(store: JobStore) -> None:
    """Add jobs up to 10,000; every other one is cancelled."""
    for number in range(SUBMITS, JOBS):
        call = commands.submission(
            parse_spec(configuration(number)), key=None, fingerprint=str(number), taken="", max_queued=JOBS + SUBMITS
        )
        made = store.run(call).job
        if number % 2:
            store.request_action(made.id, "cancel")


def measure_reads(address: tuple[str, int], store: JobStore) -> Iterator[Row]:
    """Measure the list and the status of jobs, by one client with one request at a time."""
    some = store.run(commands.page(limit=LIMIT)).jobs()
    messages = {
        f"list of {LIMIT} among {JOBS:,} jobs, p50": ([request("GET", f"/jobs?limit={LIMIT}")], 6.0),
        f"status of one of {JOBS:,} jobs, p50": ([request("GET", f"/jobs/{job.id}") for job in some], 2.0),
    }
    each = READS // READ_ROUNDS
    for what, (kinds, target) in messages.items():
        baselines, rounds = [], []
        for _ in range(READ_ROUNDS):
            baselines.append(send_requests(address, [request("GET", BASELINE)] * each, 200, clients=1))
            rounds.append(send_requests(address, (kinds * each)[:each], 200, clients=1))
        ratio = statistics.median(ours.p50_ms / theirs.p50_ms for ours, theirs in zip(rounds, baselines, strict=True))
        figure, plain = (statistics.median(r.p50_ms for r in some) for some in (rounds, baselines))
        yield Row(what, f"{figure:.2f} ms", f"{plain:.2f} ms", ratio, target)
        yield _errors("errors", rounds + baselines)


def measure_starts(address: tuple[str, int], installation: Installation) -> Iterator[Row]:
    """Measure the time from the 202 to the first statement of the child, on an idle worker."""
    waits = []
    for number in range(STARTS):
        reply = httpx.post(f"http://{address[0]}:{address[1]}/jobs", json=configuration(JOBS + number), trust_env=False)
        accepted_ns, job_id = time.time_ns(), reply.raise_for_status().json()["id"]
        _until(lambda job_id=job_id: installation.store.get(job_id).terminal, job_id)
        began_ns = int((installation.settings.data / "jobs" / job_id / "began_ns").read_text())
        waits.append((began_ns - accepted_ns) / 1e9)
        time.sleep(0.3)  # the worker is idle again
    figure = statistics.median(waits)
    spread = f"{min(waits):.2f}-{max(waits):.2f} s"
    yield Row(f"202 to the child's first statement, of {STARTS}", f"{figure:.2f} s", spread, figure, 1.2, unit=" s")


def main() -> int:
    """Print the table and return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(header("figure", "healthz"))
    with tempfile.TemporaryDirectory(prefix="hc-bench-", ignore_cleanup_errors=True) as directory:
        installation = Installation(Path(directory))
        try:
            return print_rows(_rows(installation))
        finally:
            installation.stop()


def _answers(address: tuple[str, int]) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{address[0]}:{address[1]}{BASELINE}", trust_env=False).is_success
    return False


def _until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not answer in {START_TIMEOUT_S:g} s")
        time.sleep(0.02)


def _errors(what: str, rounds: list[Round]) -> Row:
    errors = [error for one in rounds for error in one.errors]
    for error in errors[:3]:
        print(error, file=sys.stderr)
    return Row(f"  {what} of {sum(len(one.latencies_s) for one in rounds):,}", "", "", len(errors), 0)


def _rows(installation: Installation) -> Iterator[Row]:
    address = installation.start_api()
    info = {"host": "bench", "pid": 0, "slots": 1, "busy": 0, "gpus": [], "memory_bytes": 64 << 30}
    installation.registry.register("workers", "bench", info, 3600)
    yield from measure_submits(address)
    fill(installation.store)
    yield from measure_reads(address, installation.store)
    installation.registry.deregister("workers", "bench")
    connect(installation.redis_url, for_api=False).flushall()
    installation.start_worker()
    yield from measure_starts(address, installation)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
    raise SystemExit(130)
