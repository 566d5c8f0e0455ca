"""Settings of the API: those of the job store, and the limits of a request."""

from __future__ import annotations

from pydantic import Field

from worker.jobs.settings import JobSettings


class ServiceSettings(JobSettings):
    """Settings of one API process, read from the environment at its start and passed down.

    Attributes:
        hosts: Further names under which the service is reached, separated by commas; those of loopback always count.
        root_path: Path prefix under which a proxy publishes the service.
        forwarded_allow_ips: Proxies whose X-Forwarded-Prefix counts; uvicorn reads the same variable.
        max_body_bytes: Size limit of a request body.
        max_upload_bytes: Size limit of a body with files, for a dataset or a run.
        deadline_s: Longest wait for one call of the job store; some requests make two.
        ping_s: Silence after which an event stream sends a comment to keep the connection open.
        drawing_threads: Number of pictures drawn at the same time.
        max_concurrent: Open requests for text of one address.
        max_n: Continuations of one prompt.
        max_request_tokens: New tokens that one request may ask for, of all its continuations.
        max_score_tokens: Tokens of all texts of one request for likelihoods.
    """

    hosts: str = ""
    root_path: str = ""
    forwarded_allow_ips: str = Field(default="127.0.0.1", validation_alias="forwarded_allow_ips")
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_upload_bytes: int = Field(default=1 << 30, ge=1024)
    deadline_s: float = Field(default=1.0, gt=0)
    ping_s: float = Field(default=15.0, gt=0)
    drawing_threads: int = Field(default=2, ge=1)
    max_concurrent: int = Field(default=64, ge=1)
    max_n: int = Field(default=256, ge=1, le=256)
    max_request_tokens: int = Field(default=131_072, ge=1)
    max_score_tokens: int = Field(default=65_536, ge=1)

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names in `hosts`."""
        return tuple(name for part in self.hosts.split(",") if (name := part.strip()))
