"""job.json: what a client asked of a job and what became of it, so that a lost record can be put together again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_core.records.files import read_json, write_json
from worker.jobs.job import Claim

_FILE = "job.json"


def write_order(directory: Path, claim: Claim, status: str) -> None:
    """Write it down.

    Args:
        directory: The job's.
        claim: The job.
        status: Where it is now.
    """
    order = {"schema_version": 1, "id": claim.id, "kind": claim.kind, "run": claim.run, "attempt": claim.attempt}
    write_json(directory / _FILE, {**order, **claim.order, "status": status, "config": claim.config})


def read_order(directory: Path) -> dict[str, Any] | None:
    """Read it; None if the job never ran."""
    path = directory / _FILE
    return read_json(path) if path.is_file() else None
