"""What a train worker's machine decides, beside what it shares with the API."""

from __future__ import annotations

from pydantic import Field

from worker.jobs.settings import JobSettings


class WorkerSettings(JobSettings):
    """Settings of a worker process, from ``HEADCOUNT_*``."""

    slots: int | None = Field(default=None, ge=1)  # jobs at once; None: one a GPU, at least one
    stop_grace_s: float = Field(default=60.0, gt=0)  # from SIGTERM to SIGKILL: time to save
    kind_modules: dict[str, str] = Field(default={})  # JSON, kind: module; wins over kinds.MODULES
