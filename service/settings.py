"""What this machine tells the API: the job store's settings and the limits of a request."""

from __future__ import annotations

from pydantic import Field

from worker.jobs.settings import JobSettings


class ServiceSettings(JobSettings):
    """Read from the environment at the entrance of the process, and passed down.

    Attributes:
        max_body_bytes: Longest request body.
        max_upload_bytes: Longest body with files for a dataset.
        deadline_s: Longest wait for the job store within one request.
        ping_s: Silence after which an event stream says that it is still there.
        drawing_threads: Pictures drawn at the same time.
    """

    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_upload_bytes: int = Field(default=1 << 30, ge=1024)
    deadline_s: float = Field(default=1.2, gt=0)
    ping_s: float = Field(default=15.0, gt=0)
    drawing_threads: int = Field(default=2, ge=1)
