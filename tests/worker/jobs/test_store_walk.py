"""Random walks over the transitions of the store keep its invariants.

Replies get lost, so calls are repeated; wake-ups get lost, so workers look only when they happen to be woken, or when
a janitor asks.
"""

import contextlib
import itertools
import random
import shutil
import time

import pytest

from model_core.data.dataset_spec import DatasetSpec
from model_core.errors import InvalidConfig, ModelCoreError
from model_core.storage.dataset import SPLITS
from tests.worker.harness import submit_job
from worker.jobs.schemas import JobError, Outcome, WorkerView
from worker.jobs.settings import JobSettings
from worker.jobs.spec import parse_spec
from worker.jobs.states import ACTIONS, HOLDING, STATUSES, TERMINAL, TRANSITIONS
from worker.jobs.worker_store import WorkerStore

RESULTS = ("succeeded", "failed", "stopped", "crashed", "busy")
WISHES = [action for action in ACTIONS if action != "delete"]
GPUS = {"w1": (), "w2": ("GPU-a", "GPU-b"), "w3": ("GPU-a", "GPU-b")}  # two of them share a host
LOST = 0.15


class Walk:
    """Clients, workers and janitors that do something at random."""

    def __init__(self, client, redis_url, data, make_spec, seed):
        self.random, self.data = random.Random(seed), data
        self.redis, self.make_spec = client, make_spec
        self.store = WorkerStore(client, JobSettings(data=data, redis_url=redis_url, lease_s=0.02, beat_s=0.01))
        self.ids, self.claims, self.woken, self.names = [], [], [], itertools.count()
        self.transitions = set()

    def call(self, method, *args, **options):
        """As a client or a worker does: when the reply is lost, once more."""
        if self.random.random() < LOST:
            with contextlib.suppress(ModelCoreError):
                method(*args, **options)
        return method(*args, **options)

    def wake(self):
        if self.random.random() > LOST:
            self.woken.append(self.random.choice(list(GPUS)))

    def prepare(self):
        """A preparation, or a training that needs one: of few names, so that they meet."""
        name, size = f"data-{self.random.randrange(6)}", self.random.choice((300, 300, 400))
        data = {"dataset": name, "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": size}}
        wanted = self.random.choice(({"job": {"kind": "prepare"}}, {"experiment_name": f"run-{next(self.names)}"}))
        depends_on = self.random.sample(self.ids, 1) if self.ids and self.random.random() < 0.2 else []
        spec = parse_spec({**wanted, "job": {**wanted.get("job", {}), "depends_on": depends_on}, "data": data})
        needed = DatasetSpec.of(spec.config.data) if spec.kind == "train" else None
        key = f"key-{next(self.names)}"
        self.call(submit_job, self.store, spec, key=key, fingerprint="f", preparation=needed)
        self.note_ids()
        self.wake()

    def note_ids(self):
        """A training, and a job that is queued again, may submit a preparation too."""
        self.ids += [job_id for job_id in self.members("jobs") if job_id not in self.ids]

    def place_dataset(self):
        """A dataset appears on disk, or disappears."""
        name = f"data-{self.random.randrange(6)}"
        directory = self.data / "datasets" / name
        if directory.exists():
            shutil.rmtree(directory)
        else:
            directory.mkdir(parents=True)
            for split in SPLITS:
                (directory / f"{name}_{split}.npy").touch()

    def submit(self):
        awaited = self.random.sample(self.ids, min(len(self.ids), self.random.choice((0, 0, 0, 1, 2))))
        spec = self.make_spec(
            f"run-{self.random.randrange(30)}",
            priority=self.random.randrange(3),
            depends_on=awaited,
            resources={"gpus": self.random.choice((None, 0, 0, 1, 2))},
        )
        self.ids.append(self.call(submit_job, self.store, spec, key=f"key-{next(self.names)}", fingerprint="f").job.id)
        self.wake()

    def claim(self, worker=None):
        if worker is None and not self.woken:
            return
        worker = worker or self.woken.pop()
        held = {gpu for claim in self.claims for gpu in claim.devices if claim.worker == worker}
        idle = [gpu for gpu in GPUS[worker] if gpu not in held]
        token, view = str(self.random.random()), WorkerView(id=worker, host="h")
        claim = self.call(self.store.claim, token, view, idle=idle, gpus=len(GPUS[worker]))
        if claim is not None:
            object.__setattr__(claim, "worker", worker)
            self.claims.append(claim)

    def request_action(self):
        scratch, action = self.random.random() < 0.3, self.random.choice(WISHES)
        if action == "retry":
            self.call(self.store.retry, self.random.choice(self.ids), scratch=scratch)
        else:
            self.call(self.store.request_action, self.random.choice(self.ids), action)
        self.note_ids()
        self.wake()

    def update(self):
        self.call(self.store.update, self.random.choice(self.ids), priority=self.random.randrange(3))

    def delete(self):
        job_id = self.random.choice(self.ids)
        self.call(self.store.mark_deleted, job_id, with_artifacts=self.random.random() < 0.5)
        if self.random.random() > LOST:  # else whoever deleted it died in between
            self.call(self.store.purge, job_id)
            self.ids.remove(job_id)

    def report(self):
        claim = self.random.choice(self.claims)
        self.call(self.store.heartbeat, claim)
        seq = int(time.monotonic() * 1e6)
        self.call(self.store.mirror, claim, [{"seq": seq, "type": "step", "step": self.random.randrange(50)}])

    def finish(self):
        claim = self.random.choice(self.claims)
        self.claims.remove(claim)
        result = self.random.choice(RESULTS)
        self.call(self.store.finish, claim, Outcome(result, result, JobError(code="failed", detail="at random")))

    def janitor(self):
        worker = self.random.choice(list(GPUS))
        if self.call(self.store.has_runnable_job, worker, idle=GPUS[worker], gpus=len(GPUS[worker])):
            self.woken.append(worker)
        self.store.refresh_forecast(3, 10)

    def lose(self):
        """A worker falls silent; its word comes too late."""
        time.sleep(0.025)
        self.call(self.store.reap)

    def step(self):
        deeds = {
            self.submit: 16, self.prepare: 6, self.claim: 22, self.request_action: 20, self.update: 4, self.delete: 3,
            self.report: 15, self.finish: 18, self.janitor: 10, self.lose: 2, self.place_dataset: 3,
        }  # fmt: skip
        with contextlib.suppress(ModelCoreError, IndexError, InvalidConfig):
            self.random.choices(list(deeds), weights=list(deeds.values()))[0]()
        self.check()

    def records(self):
        fields = ("status", "waiting_for", "devices", "run", "kind", "dataset")
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in self.ids:
                pipe.hmget(f"headcount:job:{job_id}", fields)
            return dict(zip(self.ids, (dict(zip(fields, row, strict=True)) for row in pipe.execute()), strict=True))

    def awaited_by(self, records, job_id):
        """Jobs that one waits for, directly or through others."""
        found, new = set(), {job_id}
        while new := {other for i in new for other in (records.get(i, {}).get("waiting_for") or "").split()} - found:
            found |= new
        return found

    def members(self, name):
        return self.redis.zrange(f"headcount:{name}", 0, -1)

    def check(self):
        records = self.records()
        by_status = {s: {i for i, record in records.items() if record["status"] == s} for s in STATUSES}
        ready = {job_id for job_id in by_status["queued"] if not records[job_id]["waiting_for"]}
        assert set(self.members("ready")) == ready
        awaited = {other for i in by_status["queued"] for other in records[i]["waiting_for"].split()}
        assert all(records.get(other, {}).get("status") not in {None, *TERMINAL} for other in awaited)
        assert not any(job_id in self.awaited_by(records, job_id) for job_id in by_status["queued"])
        lines = [job_id for name in ("any", *"012") for job_id in self.members(f"ready:{name}")]
        assert sorted(lines) == sorted(ready)
        holding = set.union(*(by_status[status] for status in HOLDING))
        assert set(self.members("leases")) == holding
        for status, members in by_status.items():
            assert set(self.members(f"jobs:status:{status}")) == members
        for kind, made in {"train": "run", "prepare": "dataset"}.items():
            live = [(r[made], i) for i, r in records.items() if r["kind"] == kind and r["status"] not in TERMINAL]
            names = self.redis.keys(f"headcount:{made}:*")
            kept = [(name.rpartition(":")[2], self.redis.get(name)) for name in names]
            assert sorted(kept) == sorted(live)  # and so no name is kept twice
        makers = {record["dataset"] for record in records.values() if record["kind"] == "prepare"}
        assert set(self.members("datasets")) == makers
        told = {gpu: job_id for job_id in holding for gpu in (records[job_id]["devices"] or "").split()}
        assert self.redis.hgetall("headcount:gpus") == told
        assert len(told) == sum(len((records[job_id]["devices"] or "").split()) for job_id in holding)

    def note_arrows(self):
        for job_id in self.ids:
            self.transitions |= {(change.from_, change.to) for change in self.store.get(job_id).history if change.from_}

    def holders(self):
        """Claims by job that the store still accepts."""
        valid = [claim.id for claim in self.claims if self.store.heartbeat(claim) != "fenced"]
        return {job_id: valid.count(job_id) for job_id in valid}

    def drain(self):
        """Let everything that may run come to its end."""
        for claim in self.claims:
            self.store.finish(claim, Outcome("stopped", "drained"))
        self.claims = []
        for _ in range(2000):
            for worker in GPUS:
                if self.store.has_runnable_job(worker, idle=GPUS[worker], gpus=len(GPUS[worker])):
                    self.claim(worker)
            while self.claims:
                self.store.finish(self.claims.pop(), Outcome("succeeded", "finished"))
            if not self.members("ready"):
                return
            time.sleep(0.001)  # what found its run busy waits a moment


def walked(connected, url, data, make_spec, seed, steps):
    walk = Walk(connected(url, for_api=False), url, data, make_spec, seed)
    for _ in range(steps):
        walk.step()
    assert set(walk.holders().values()) <= {1}
    walk.note_arrows()
    assert walk.transitions <= {(old, new) for old, targets in TRANSITIONS.items() for new in targets}
    walk.lose()
    for job_id in walk.members("ready"):
        walk.redis.hset(f"headcount:job:{job_id}", "not_before", 0)
    walk.drain()
    walk.check()
    assert walk.members("ready") == []
    return walk.transitions


@pytest.mark.parametrize("seed", range(3))
def test_invariants_hold_on_a_random_walk(connected, aged_redis_url, tmp_path, make_spec, seed):
    assert len(walked(connected, aged_redis_url, tmp_path, make_spec, seed, 300)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 106))
def test_invariants_hold_on_a_long_random_walk(connected, aged_redis_url, tmp_path, make_spec, seed):
    walked(connected, aged_redis_url, tmp_path, make_spec, seed, 1500)
