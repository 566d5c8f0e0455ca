"""Job records as workers change them: claim, heartbeat, events, outcome.

A lease with an epoch decides which worker runs a job. A worker whose epoch is not the current one is fenced: its
reports have no effect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from model_core.storage.events import Event
from worker.jobs.commands import ScriptCall
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

        A job in front that needs more GPUs than are free reserves the free ones, so that jobs behind it wait too.

        Args:
            owner: New token for every claim; the same token gets the same job again.
            worker: The worker.
            idle: UUIDs of its GPUs that no job uses.
            gpus: Number of its GPUs.

        Returns:
            The job, or None if none fits.
        """
        arguments = {
            "owner": owner,
            "worker": worker.id,
            "worker_info": worker.model_dump_json(),
            "lease_ms": self._lease_ms,
            "idle": list(idle),
            "gpus": gpus,
        }
        return self.run(ScriptCall("transitions.claim", arguments, _claim))

    def has_runnable_job(self, worker_id: str, *, idle: Sequence[str] = (), gpus: int = 0) -> bool:
        """Check whether `claim` would find a job.

        Args:
            worker_id: Name of the worker.
            idle: UUIDs of its GPUs that no job uses.
            gpus: Number of its GPUs.

        Returns:
            Whether a job fits.
        """
        arguments = {"worker": worker_id, "idle": list(idle), "gpus": gpus}
        return self.run(ScriptCall("scheduling.has_runnable", arguments, lambda reply: bool(reply["is_runnable"])))

    def heartbeat(self, claim: Claim, worker: WorkerView | None = None) -> str:
        """Renew the lease.

        Args:
            claim: The claimed job.
            worker: New description of the worker, if it changed.

        Returns:
            The requested state (``run``, ``pause`` or ``cancel``), or ``fenced`` if another worker may have the job.
        """
        info = worker.model_dump_json() if worker else None
        arguments = {"id": claim.id, "epoch": claim.attempt, "lease_ms": self._lease_ms, "worker_info": info}
        return self.run(ScriptCall("transitions.heartbeat", arguments, _desired))

    def mirror(self, claim: Claim, events: Sequence[Event], progress: Progress | None = None) -> str:
        """Add new events to those that Redis keeps; events that it has are left out.

        Args:
            claim: The claimed job.
            events: Events in order; may be empty.
            progress: Progress after them.

        Returns:
            As `heartbeat`.
        """
        counted = kind_of(claim.kind).counts  # a crash after more of it is no crash in a row
        resumed = [{"file": e["file"], "step": e["step"]} for e in events if _is_resumption_of(claim, e)]
        arguments = {
            "id": claim.id,
            "epoch": claim.attempt,
            "events": [{"seq": e["seq"], "text": json.dumps(e, ensure_ascii=False)} for e in events],
            "tail": EVENT_TAIL,
            "progress": (progress or Progress.beginning(claim.kind)).model_dump_json(),
            "step": max((event.get(counted, 0) for event in events), default=0),
            "resumed_from": json.dumps(resumed[-1]) if resumed else None,
        }
        return self.run(ScriptCall("transitions.mirror", arguments, _desired))

    def finish(self, claim: Claim, outcome: Outcome) -> str:
        """Record how an attempt ended.

        Args:
            claim: The claimed job.
            outcome: How its process ended.

        Returns:
            The job's new status, or ``fenced``.
        """
        arguments = {
            "id": claim.id,
            "epoch": claim.attempt,
            "result": outcome.result,
            "reason": outcome.reason,
            "error": self.error_of(outcome).model_dump_json(),
            "crash_budget": self.settings.crash_budget,
        }
        return self.run(ScriptCall("transitions.finish", arguments, lambda reply: str(reply["status"])))

    def error_of(self, outcome: Outcome) -> JobError:
        """Describe why a job fails if it fails by an outcome.

        Args:
            outcome: How its process ended.

        Returns:
            The error that the process reported, or that it crashed too often.
        """
        return outcome.error or self._crash_budget(outcome.reason)

    def reap(self) -> list[str]:
        """Take jobs from workers whose lease expired; none until Redis has been up for longer than a lease.

        Returns:
            Ids of the jobs.
        """
        with redis_errors():
            uptime = int(self._redis.info("server")["uptime_in_seconds"])
        if uptime <= self.settings.lease_s:
            return []
        error = self._crash_budget("the worker was lost").model_dump_json()
        arguments = {"crash_budget": self.settings.crash_budget, "error": error}
        return self.run(ScriptCall("transitions.reap", arguments, lambda reply: list(reply["ids"])))

    def refresh_forecast(self, slots: int, ttl_s: float) -> None:
        """Refresh the forecast of the queue that clients see.

        Args:
            slots: Slots of all workers together.
            ttl_s: Seconds after which the forecast expires.
        """
        took_s, running = self.run(ScriptCall("scheduling.forecast_inputs", {}, _forecast_inputs))
        forecast = QueueForecast.of(slots, took_s, running)
        with redis_errors():
            self._redis.set(f"{PREFIX}outlook", forecast.to_json(), px=int(ttl_s * 1000))

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)

    def _crash_budget(self, reason: str) -> JobError:
        detail = f"crashed {self.settings.crash_budget} times in a row without a new step: {reason}"
        return JobError(code="crash_budget", detail=detail, hint="look at the job's log; retry when the cause is gone")


def _claim(reply: Any) -> Claim | None:
    if "claim" not in reply:
        return None
    record = reply["claim"]
    request = {
        "gpus": int(record["gpus"]) if record["gpus"] else None,
        "priority": int(record["priority"]),
        "metadata": json.loads(record["metadata"]),
        "warnings": json.loads(record["warnings"]),
        "depends_on": record.get("depends_on", "").split(),
        "created_at": int(record["created_at"]),
        "colour": int(record["colour"]) if "colour" in record else None,
    }
    return Claim(
        id=record["id"],
        attempt=int(record["epoch"]),
        kind=record["kind"],
        run=record["run"] or None,
        config=json.loads(record["spec"]),
        dataset=record.get("dataset") or None,
        devices=tuple(record.get("devices", "").split()),
        seq_after=int(record.get("seq_after", 0)),
        request=request,
    )


def _desired(reply: Any) -> str:
    return str(reply["desired"])


def _forecast_inputs(reply: Any) -> tuple[list[float], list[tuple[float, float | None]]]:
    """Seconds that finished jobs took; age and remaining seconds of running ones."""
    took_s = [int(duration_ms) / 1000 for duration_ms in reply["durations_ms"]]
    running = [
        (int(job["age_ms"]) / 1000, json.loads(job["progress"])["eta_s"] if "progress" in job else None)
        for job in reply["running"]
    ]
    return took_s, running


def _is_resumption_of(claim: Claim, event: Event) -> bool:
    return event["type"] == "resumed" and event.get("attempt") == claim.attempt
