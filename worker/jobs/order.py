"""job.json: what a client asked of a job and what became of it, so that a lost record can be put together again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_core.records.files import now, read_json, write_json
from worker.jobs.exchange import Claim
from worker.jobs.job import JobError

_FILE = "job.json"


def write_order(directory: Path, claim: Claim, status: str, error: JobError | None = None) -> None:
    """Write it down.

    Args:
        directory: The job's.
        claim: The job.
        status: Where it is now.
        error: Why it failed, if it did.
    """
    job = {"schema_version": 1, "id": claim.id, "kind": claim.kind, "run": claim.run, "dataset": claim.dataset}
    end = {"status": status, "error": error.model_dump() if error else None, "time": now()}
    write_json(directory / _FILE, {**job, "attempt": claim.attempt, **claim.order, **end, "config": claim.config})


def read_order(directory: Path) -> dict[str, Any] | None:
    """Read it; None if the job never ran."""
    path = directory / _FILE
    return read_json(path) if path.is_file() else None
