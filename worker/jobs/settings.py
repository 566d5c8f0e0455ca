"""Settings of a machine for the API, the workers and the inference process: Redis, data root, timeouts.

Each process reads them once from the environment, ``HEADCOUNT_*``, and passes them down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_core.storage.files import Layout


class JobSettings(BaseSettings):
    """Settings that API and workers share."""

    model_config = SettingsConfigDict(
        env_prefix="HEADCOUNT_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # an address holds a password
    )

    data: Path = Path("data")
    redis_url: str = "redis://127.0.0.1:6379/0"
    lease_s: float = Field(default=60.0, gt=0)  # a worker without a heartbeat for this long has lost its job
    beat_s: float = Field(default=15.0, gt=0)
    janitor_s: float = Field(default=10.0, gt=0)
    stall_s: float = Field(default=900.0, gt=0)  # a child without an event for this long hangs
    crash_budget: int = Field(default=3, ge=1)  # crashes in a row without a new step
    max_queued: int = Field(default=20_000, ge=1)

    @property
    def layout(self) -> Layout:
        """The directories below the data root."""
        return Layout.under(self.data.resolve())

    @model_validator(mode="after")
    def _beats_keep_the_lease(self) -> Self:
        if self.beat_s * 2 > self.lease_s:
            raise ValueError(f"beat_s {self.beat_s} must be at most half of lease_s {self.lease_s}")
        return self


class WorkerSettings(JobSettings):
    """Settings of a worker process, from ``HEADCOUNT_*``."""

    slots: int | None = Field(default=None, ge=1)  # jobs at once; None: one per GPU, at least one
    stop_grace_s: float = Field(default=60.0, gt=0)  # from SIGTERM to SIGKILL: time to save
    kind_modules: dict[str, str] = Field(default={})  # JSON, kind: module; wins over kinds.KINDS


class InferenceSettings(BaseSettings):
    """Device of the loaded models, and the memory that they may take."""

    model_config = SettingsConfigDict(
        env_prefix="HEADCOUNT_INFERENCE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    memory_gb: float = Field(default=4.0, gt=0)  # GiB, for all loaded models with their KV caches

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes."""
        return int(self.memory_gb * 2**30)
