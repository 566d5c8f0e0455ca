"""Settings of a machine for the API, the workers and the inference process: Redis, data root, timeouts.

Each process reads them once from the environment, ``HEADCOUNT_*``, and passes them down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

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
    attention_gb: float = Field(default=8.0, gt=0)  # GiB on disk of all captured attention

    @property
    def attention_bytes(self) -> int:
        """`attention_gb` in bytes."""
        return int(self.attention_gb * 2**30)

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
    """Settings of an inference process, from ``HEADCOUNT_INFERENCE_*``: its device and what it may take."""

    model_config = SettingsConfigDict(
        env_prefix="HEADCOUNT_INFERENCE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    weights: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"  # format of the parameters in memory
    memory_gb: float = Field(default=4.0, gt=0)  # GiB, for all loaded models with their KV caches
    threads: int | None = Field(default=None, ge=1)  # of torch on the CPU; None: half the cores
    max_rows: int = Field(default=32, ge=1, le=4096)  # texts that one model generates at once
    max_queue: int = Field(default=256, ge=1)  # open requests of one model; one more is refused
    prefill_tokens: int = Field(default=64, ge=1)  # of prompts in one step, while somebody decodes
    idle_unload_s: float = Field(default=900.0, gt=0)  # a model without requests for this long leaves the memory
    deadline_s: float = Field(default=600.0, gt=0)  # longest time for one request
    int8_max_loss: float = Field(default=0.01, ge=0)  # share by which int8 may raise the loss; else it is not used
    prefix_cache_mb: float = Field(default=256.0, ge=0)  # MiB of a model's cache for prompts that begin alike

    @property
    def memory_bytes(self) -> int:
        """`memory_gb` in bytes."""
        return int(self.memory_gb * 2**30)

    @property
    def prefix_cache_bytes(self) -> int:
        """`prefix_cache_mb` in bytes."""
        return int(self.prefix_cache_mb * 2**20)
