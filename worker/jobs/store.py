"""The truth about jobs: records in Redis, changed by one Lua script a transition.

Every script may be repeated: a command whose reply got lost had been executed all the same. Who runs a job is decided
by a lease with an attempt number; a worker whose number is no longer the present one is told that it is fenced.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import redis

from model_core.errors import RunExists
from model_core.records.events import Event
from worker.jobs.connection import PREFIX, reaching
from worker.jobs.errors import ActionNotAllowed, IdempotencyConflict, JobNotFound, QueueFull
from worker.jobs.job import Claim, Job, JobError, Outcome, Page, Progress, Submission, Wish, WorkerView, job_of
from worker.jobs.settings import JobSettings
from worker.jobs.spec import JobSpec
from worker.jobs.states import Action, Status, allowed_actions, as_lua

__all__ = ["CHANGES_KEY", "Claim", "Job", "JobStore", "Outcome", "Page", "Submission"]

CHANGES_KEY = f"{PREFIX}changes"  # a bounded stream; every change of a job adds {job: id}
EVENT_TAIL = 1000  # events of a job that Redis keeps; the file has them all

_ID = re.compile(r"job_[0-9a-f]{32}")
_LUA = Path(__file__).parent / "lua"
_VIEW = (
    "id", "kind", "run", "status", "epoch", "created_at", "started_at", "finished_at", "progress", "error", "worker",
    "warnings", "metadata", "priority",
)  # fmt: skip


class JobStore:
    """Job records. Every method raises `QueueUnavailable` when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: JobSettings) -> None:
        self._redis, self._settings = client, settings
        self._scripts = {name: client.register_script(text) for name, text in _scripts().items()}

    def _run(self, script: str, *args: str | int | float) -> Any:
        with reaching():
            return self._scripts[script](args=args)

    # --- clients ---------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, *, key: str | None = None, fingerprint: str) -> Submission:
        """Record a job, unless its key was used before.

        The run's name is refused when a directory has it or a job that is not over keeps it; a known key comes first,
        so that a repeated request gets its job also when the run has been made meanwhile.

        Args:
            spec: What to do.
            key: The client's Idempotency-Key, kept for a day.
            fingerprint: Equal for equal requests.

        Raises:
            IdempotencyConflict: The key came with another fingerprint before.
            RunExists: Naming the next free name.
            QueueFull: Too many jobs wait.
        """
        job_id = f"job_{uuid.uuid4().hex}"
        hashed = _hash(key) if key else ""
        taken = self._settings.layout.run(spec.run).exists()
        gpus = "" if spec.gpus is None else spec.gpus
        body = json.dumps(spec.config.model_dump(mode="json", exclude_unset=True), separators=(",", ":"))
        warnings, metadata = json.dumps([asdict(item) for item in spec.warnings]), json.dumps(spec.job.metadata)
        verdict, known = self._run(
            "submit", job_id, hashed, fingerprint, spec.kind, spec.run, gpus, spec.job.priority, body, warnings,
            metadata, int(taken), self._settings.max_queued,
        )  # fmt: skip
        if verdict == "conflict":
            raise IdempotencyConflict(key or "", known)
        if verdict == "run_exists":
            raise RunExists(spec.run, self.next_free_run(spec.run))
        if verdict == "full":
            raise QueueFull(self._settings.max_queued)
        return Submission(self.get(known), created=verdict == "created")

    def known(self, key: str, fingerprint: str) -> Job | None:
        """The job that a request with this key made, if one did.

        Raises:
            IdempotencyConflict: The key came with another fingerprint before.
        """
        with reaching():
            record: Any = self._redis.hmget(f"{PREFIX}key:{_hash(key)}", ("job", "fingerprint"))
        job_id, before = record
        if job_id is None:
            return None
        if before != fingerprint:
            raise IdempotencyConflict(key, job_id)
        return self.get(job_id)

    def next_free_run(self, run: str) -> str:
        """The first of run-2, run-3 ... that neither a directory nor a job that is not over has."""
        number = 2
        while True:
            suffix = f"-{number}"
            candidate = run[: 63 - len(suffix)] + suffix
            with reaching():
                kept = self._redis.exists(f"{PREFIX}run:{candidate}")
            if not kept and not self._settings.layout.run(candidate).exists():
                return candidate
            number += 1

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            JobNotFound: There is none of that id.
        """
        jobs = self._read([job_id]) if _ID.fullmatch(job_id) else []
        if not jobs:
            raise JobNotFound(job_id)
        return jobs[0]

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: Status | None = None,
        kind: str | None = None,
        run: str | None = None,
    ) -> Page:
        """List jobs, newest first.

        Args:
            after: The last job of the page before.
            limit: How many at most.
            status: Only these.
            kind: Only these.
            run: Only these.

        Raises:
            JobNotFound: `after` is no job.
        """
        if after and not _ID.fullmatch(after):
            raise JobNotFound(after)
        verdict, *rest = self._run("page", after or "", limit + 1, status or "", kind or "", run or "")
        if verdict == "missing":
            raise JobNotFound(after or "")
        ids = rest[0]
        return Page(tuple(self._read(ids[:limit])), has_more=len(ids) > limit)

    def _read(self, ids: Sequence[str]) -> list[Job]:
        with reaching(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(_key(job_id), _VIEW)
                pipe.lrange(f"{_key(job_id)}:history", 0, -1)
                pipe.zrank(f"{PREFIX}ready", job_id)
            replies = pipe.execute()
        records = zip(replies[::3], replies[1::3], replies[2::3], strict=True)
        named = ((dict(zip(_VIEW, record, strict=True)), history, rank) for record, history, rank in records)
        return [job_of(record, history, rank) for record, history, rank in named if record["id"] is not None]

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Events of the job's tail with a `seq` above `after`."""
        with reaching():
            start = f"({after}-0" if after else "-"
            entries: Any = self._redis.xrange(f"{_key(job_id)}:events", start, "+", count=limit)
        return [json.loads(fields["event"]) for _, fields in entries]

    def cancel(self, job_id: str) -> Wish:
        """Ask that a job ends; a queued one is cancelled at once, a running one when its process is gone."""
        return self.want(job_id, "cancel")

    def want(self, job_id: str, action: Action) -> Wish:
        """Apply a client's wish; one that came before changes nothing.

        Raises:
            JobNotFound: There is none of that id.
            ActionNotAllowed: Its state does not allow it.
            RunExists: Another job has taken the run's name meanwhile.
        """
        if not _ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        verdict, fact = self._run("want", job_id, action)
        if verdict == "missing":
            raise JobNotFound(job_id)
        if verdict == "refused":
            raise ActionNotAllowed(fact, action, allowed_actions(fact))
        if verdict == "run_exists":
            raise RunExists(fact, self.next_free_run(fact))
        return Wish(self.get(job_id), is_new=fact == "changed")

    # --- workers ---------------------------------------------------------------------------------------------

    def claim(self, owner: str, worker: WorkerView, *, free_gpus: int, has_gpus: bool) -> Claim | None:
        """Take the first ready job that fits.

        Args:
            owner: A fresh token for every claim; the same one again gets the same job.
            worker: Who asks.
            free_gpus: GPUs that nobody uses.
            has_gpus: Whether the worker has any at all.

        Returns:
            The job, or None when none fits.
        """
        lease_ms = int(self._settings.lease_s * 1000)
        facts = worker.model_dump_json()
        reply = self._run("claim", owner, lease_ms, free_gpus, int(has_gpus), facts, worker.id)
        if not reply:
            return None
        job_id, epoch, kind, run, gpus, spec = reply
        return Claim(job_id, int(epoch), kind, run, int(gpus) if gpus else None, json.loads(spec))

    def fitting(self, *, free_gpus: int, has_gpus: bool) -> bool:
        """Whether `claim` would find a job."""
        return bool(self._run("fitting", free_gpus, int(has_gpus)))

    def beat(self, claim: Claim, worker: WorkerView | None = None) -> str:
        """Renew the lease.

        Returns:
            What is wished (``run``, ``pause``, ``cancel``), or ``fenced``: the job is no longer this worker's.
        """
        facts = worker.model_dump_json() if worker else ""
        return str(self._run("beat", claim.id, claim.attempt, int(self._settings.lease_s * 1000), facts))

    def mirror(self, claim: Claim, events: Sequence[Event], progress: Progress | None = None) -> str:
        """Add new events to the tail; those told before are left out.

        Args:
            claim: Whose they are.
            events: In order; may be empty.
            progress: How far the job is after them.

        Returns:
            As `beat`.
        """
        shown = progress or Progress()
        pairs = [item for event in events for item in (event["seq"], json.dumps(event, ensure_ascii=False))]
        furthest = max((event.get("step", 0) for event in events), default=0)
        return str(self._run("mirror", claim.id, claim.attempt, shown.model_dump_json(), furthest, EVENT_TAIL, *pairs))

    def finish(self, claim: Claim, outcome: Outcome) -> str:
        """Record how an attempt ended.

        Returns:
            The status it led to, or ``fenced``.
        """
        error = (outcome.error or _crash_budget(self._settings.crash_budget, outcome.reason)).model_dump_json()
        budget = self._settings.crash_budget
        return str(self._run("finish", claim.id, claim.attempt, outcome.result, outcome.reason, error, budget))

    def reap(self) -> list[str]:
        """Take jobs from workers whose lease ran out; none until Redis has been up for longer than a lease."""
        with reaching():
            uptime = int(self._redis.info("server")["uptime_in_seconds"])
        if uptime <= self._settings.lease_s:
            return []
        budget = self._settings.crash_budget
        return list(self._run("reap", budget, _crash_budget(budget, "the worker was lost").model_dump_json()))

    def time_s(self) -> float:
        """The server's clock."""
        with reaching():
            seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6


def _crash_budget(budget: int, reason: str) -> JobError:
    hint = "look at the job's log; retry when the cause is gone"
    return JobError(
        code="crash_budget", detail=f"crashed {budget} times in a row without a new step: {reason}", hint=hint
    )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


@cache
def _scripts() -> dict[str, str]:
    head = f"local P = '{PREFIX}'\n{as_lua()}{(_LUA / 'lib.lua').read_text(encoding='utf-8')}"
    return {path.stem: head + path.read_text(encoding="utf-8") for path in _LUA.glob("*.lua") if path.stem != "lib"}
