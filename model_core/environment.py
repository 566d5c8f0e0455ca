"""What a run's surroundings were, as its `start` event tells it."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from model_core.config import ExperimentConfig

if TYPE_CHECKING:
    from model_core.device import Runtime

log = logging.getLogger(__name__)

_IGNORED_VARIABLES = {
    "PYTORCH_SDP_KERNEL": "device.attention_backend",
    "NVIDIA_TF32_OVERRIDE": "device.tf32",
}


def start_facts(config: ExperimentConfig, runtime: Runtime) -> dict[str, Any]:
    """What was asked of the hardware and what is used, for the `start` event."""
    ignored = ignored_variables(os.environ)
    for message in ignored:
        log.warning(message)
    return {
        "code_version": _version("headcount"),
        "asked": config.device.model_dump(mode="json"),
        "used": runtime.describe(),
        "environment": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "platform": platform.platform(),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "ignored": ignored,
        },
    }


def ignored_variables(environment: Mapping[str, str]) -> list[str]:
    """Messages for variables that look like settings and are none."""
    return [
        f"{name} is set in the environment and has no effect; use {key}"
        for name, key in _IGNORED_VARIABLES.items()
        if name in environment
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
