"""The run of an attempt: created or opened, claimed, and described in the `start` event.

Torch-free until a checkpoint has to be checked, so that a refusal is immediate.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from model_core.config import ExperimentConfig
from model_core.data.dataset_spec import DatasetSpec
from model_core.data.ensure import ensure_dataset, refuse_unlike
from model_core.entrypoint import next_attempt
from model_core.errors import InvalidParameter, RunBusy, RunExists
from model_core.launch import DistEnv
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout, next_free_name
from model_core.storage.run import Run

if TYPE_CHECKING:
    from model_core.hardware.device import Runtime


def create_or_open_run(arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, place: DistEnv) -> Run:
    """Create the run, or open the one to go on with.

    Args:
        arguments: Of the program: ``resume``, ``overrides``, ``job_id``, ``gpu``, ``token``.
        config: What is to be trained.
        layout: Where things lie.
        place: Of this process among those that train.

    Raises:
        RunExists: The name is taken, and nobody asked to go on.
        InvalidParameter: What was asked does not go with a run that exists.
        ModelCoreError: It could not begin; there is no run then.
    """
    path = layout.run(config.experiment_name)
    if arguments.resume:
        if arguments.overrides:
            raise InvalidParameter(
                "--set does not go with --resume: a run's configuration is fixed; "
                "to change it, start a new run with checkpoint.load_checkpoint"
            )
        return Run.open(path)
    if arguments.job_id and (path / "attempt").exists() and Run(path).attempt()["job_id"] == arguments.job_id:
        return Run.open(path)
    if path.exists():
        raise RunExists(path.name, next_free_name(path))
    _check_that_it_can_begin(arguments, config, layout, place)
    return Run.create(path, config, arguments.job_id)


def claim_run(arguments: argparse.Namespace, run: Run) -> int:
    """Make this attempt the run's owner.

    Args:
        arguments: Of the program: ``attempt``, ``job_id``.
        run: Under its lock.

    Returns:
        The attempt's number.

    Raises:
        RunBusy: A later attempt has it.
    """
    owner: int = run.attempt()["attempt"]
    number = arguments.attempt or max(next_attempt(run.events), owner + 1)
    if owner > number:
        raise RunBusy(run.name)
    run.begin_attempt(number, arguments.job_id)
    return number


def _check_that_it_can_begin(
    arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, place: DistEnv
) -> None:
    """Refuse what would fail at once: no run is created for it, and its name stays free."""
    dataset = dataset_of(config, layout)
    if not dataset.missing():
        refuse_unlike(dataset, config.data, read_files=False)
    elif config.data.source is not None:
        DatasetSpec.of(config.data).open_source(arguments.token)
    else:
        ensure_dataset(config, layout)  # raises, with the command that makes it

    from model_core.training.resume import load_init_checkpoint
    from model_core.training.setup import runtime_of
    from model_core.training.tracking import require_trackers

    runtime_of(config, place, arguments.gpu)
    require_trackers(config)
    if config.checkpoint.load_checkpoint:
        load_init_checkpoint(config, layout)


_IGNORED_VARIABLES = {
    "PYTORCH_SDP_KERNEL": "device.attention_backend",
    "NVIDIA_TF32_OVERRIDE": "device.tf32",
}


def emit_start_event(
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
