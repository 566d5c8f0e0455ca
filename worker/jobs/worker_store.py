"""What workers may do with job records: take them, keep them, tell of them, end them.

Who runs a job is decided by a lease with an attempt number; a worker whose number is no longer the present one is
told that it is fenced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from model_core.storage.events import Event
from worker.jobs.eta import QueueForecast
from worker.jobs.kinds import kind_of
from worker.jobs.redis_client import PREFIX, redis_errors
from worker.jobs.schemas import Claim, JobError, Outcome, Progress, WorkerView
from worker.jobs.store import JobStore

EVENT_TAIL = 1000  # events of a job that Redis keeps; the file has them all


class WorkerStore(JobStore):
    """Job records, as workers change them. Every method raises `QueueUnavailable` when Redis is away."""

    def claim(self, owner: str, worker: WorkerView, *, idle: Sequence[str] = (), gpus: int = 0) -> Claim | None:
        """Take the first ready job that fits, with the GPUs it needs.

        A job in front that needs more GPUs than are free keeps those that are: jobs behind it wait too.

        Args:
            owner: A fresh token for every claim; the same one again gets the same job.
            worker: Who asks.
            idle: Uuids of the GPUs that nothing of this worker uses.
            gpus: How many it has in all.

        Returns:
            The job, or None when none fits.
        """
        lease_ms, facts = int(self._settings.lease_s * 1000), worker.model_dump_json()
        reply = self._scripts.run("claim", owner, lease_ms, " ".join(idle), gpus, facts, worker.id)
        if not reply:
            return None
        (
            epoch,
            job_id,
            kind,
            run,
            dataset,
            devices,
            spec,
            asked,
            priority,
            metadata,
            warnings,
            depends_on,
            created_at,
            seq_after,
        ) = reply
        order = {
            "gpus": int(asked) if asked else None,
            "priority": int(priority),
            "metadata": json.loads(metadata),
            "warnings": json.loads(warnings),
            "depends_on": (depends_on or "").split(),
            "created_at": int(created_at),
        }
        taken = tuple((devices or "").split())
        return Claim(
            job_id, int(epoch), kind, run or None, json.loads(spec), dataset or None, taken, int(seq_after or 0), order
        )

    def has_runnable_job(self, worker_id: str, *, idle: Sequence[str] = (), gpus: int = 0) -> bool:
        """Whether `claim` would find a job."""
        return bool(self._scripts.run("fitting", worker_id, " ".join(idle), gpus))

    def heartbeat(self, claim: Claim, worker: WorkerView | None = None) -> str:
        """Renew the lease.

        Returns:
            What is wished (``run``, ``pause``, ``cancel``), or ``fenced``: the job is no longer this worker's.
        """
        facts = worker.model_dump_json() if worker else ""
        return str(self._scripts.run("beat", claim.id, claim.attempt, int(self._settings.lease_s * 1000), facts))

    def mirror(self, claim: Claim, events: Sequence[Event], progress: Progress | None = None) -> str:
        """Add new events to the tail; those told before are left out.

        Args:
            claim: Whose they are.
            events: In order; may be empty.
            progress: How far the job is after them.

        Returns:
            As `heartbeat`.
        """
        shown = (progress or Progress.beginning(claim.kind)).model_dump_json()
        pairs = [item for event in events for item in (event["seq"], json.dumps(event, ensure_ascii=False))]
        counted = kind_of(claim.kind).counts  # a crash after more of it is no crash in a row
        furthest = max((event.get(counted, 0) for event in events), default=0)
        resumed = [{"file": e["file"], "step": e["step"]} for e in events if _is_resumption_of(claim, e)]
        origin = json.dumps(resumed[-1]) if resumed else ""
        return str(self._scripts.run("mirror", claim.id, claim.attempt, shown, furthest, EVENT_TAIL, origin, *pairs))

    def finish(self, claim: Claim, outcome: Outcome) -> str:
        """Record how an attempt ended.

        Returns:
            The status it led to, or ``fenced``.
        """
        error, budget = self.error_of(outcome).model_dump_json(), self._settings.crash_budget
        return str(self._scripts.run("finish", claim.id, claim.attempt, outcome.result, outcome.reason, error, budget))

    def error_of(self, outcome: Outcome) -> JobError:
        """Why a job fails if it fails by this outcome: by its own word, or because it crashed too often."""
        return outcome.error or self._crash_budget(outcome.reason)

    def reap(self) -> list[str]:
        """Take jobs from workers whose lease ran out; none until Redis has been up for longer than a lease."""
        with redis_errors():
            uptime = int(self._redis.info("server")["uptime_in_seconds"])
        if uptime <= self._settings.lease_s:
            return []
        error = self._crash_budget("the worker was lost").model_dump_json()
        return list(self._scripts.run("reap", self._settings.crash_budget, error))

    def _crash_budget(self, reason: str) -> JobError:
        detail = f"crashed {self._settings.crash_budget} times in a row without a new step: {reason}"
        return JobError(code="crash_budget", detail=detail, hint="look at the job's log; retry when the cause is gone")

    def refresh_forecast(self, slots: int, ttl_s: float) -> None:
        """Refresh the forecast that clients see, for so many seconds.

        Args:
            slots: Of all workers together.
            ttl_s: Without another word nobody knows any more.
        """
        took_ms, running = self._scripts.run("load")
        paces = [(int(age_ms) / 1000, json.loads(text)["eta_s"] if text else None) for text, age_ms in running]
        forecast = QueueForecast.of(slots, [int(ms) / 1000 for ms in took_ms], paces)
        with redis_errors():
            self._redis.set(f"{PREFIX}outlook", forecast.to_json(), px=int(ttl_s * 1000))


def _is_resumption_of(claim: Claim, event: Event) -> bool:
    return event["type"] == "resumed" and event.get("attempt") == claim.attempt
