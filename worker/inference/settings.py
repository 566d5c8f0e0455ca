"""What the machine decides about inference, from ``HEADCOUNT_INFERENCE_*``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class InferenceSettings(BaseSettings):
    """Where models are loaded, and how much memory they may take."""

    model_config = SettingsConfigDict(
        env_prefix="HEADCOUNT_INFERENCE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    memory_gb: float = Field(default=4.0, gt=0)  # of all loaded models with their caches, in GiB

    @property
    def memory_bytes(self) -> int:
        """The cap in bytes."""
        return int(self.memory_gb * 2**30)
