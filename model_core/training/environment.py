"""What a run's surroundings were, as its `start` event tells it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from model_core.config import ExperimentConfig

if TYPE_CHECKING:
    from model_core.hardware.device import Runtime

_IGNORED_VARIABLES = {
    "PYTORCH_SDP_KERNEL": "device.attention_backend",
    "NVIDIA_TF32_OVERRIDE": "device.tf32",
}


def announce(
    emit: Callable[..., Any], config: ExperimentConfig, runtime: Runtime, gpu: int | None, **facts: Any
) -> None:
    """Write the `start` event, and a `warning` for everything that is not as somebody may think it is.

    Args:
        emit: Told both.
        config: What was asked.
        runtime: What is used.
        gpu: Index among the visible GPUs that was asked for on the command line.
        facts: What else the event says.
    """
    ignored = ignored_variables(os.environ)
    emit("start", **_start_facts(config, runtime, gpu, ignored), **facts)
    for code, detail in (*runtime.warnings, *(("variable_ignored", message) for message in ignored)):
        emit("warning", code=code, detail=detail)


def _start_facts(config: ExperimentConfig, runtime: Runtime, gpu: int | None, ignored: list[str]) -> dict[str, Any]:
    """What was asked of the hardware and what is used."""
    return {
        "code_version": _version("headcount"),
        "asked": {
            **config.device.model_dump(mode="json"),
            "gpu": gpu,
            "use_compile": config.execution.use_compile,
            "gradient_checkpointing": config.training.gradient_checkpointing,
        },
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
