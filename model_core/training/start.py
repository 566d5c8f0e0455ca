"""The run of an attempt: created or opened, claimed, and described in the `start` event.

Loads no torch before a new run's device and checkpoint are checked, so that most refusals are immediate. A new run
gets its resolved configuration at once where its dataset exists; otherwise the attempt resolves it after preparation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from model_core.config import ExperimentConfig
from model_core.config_validation import check_tokens_suffice
from model_core.data.dataset_spec import DatasetSpec
from model_core.data.ensure import check_matches, ensure_dataset
from model_core.data.sources.hub_access import Token
from model_core.entrypoint import Emit, ShutdownSignal, next_attempt
from model_core.errors import InvalidConfig, InvalidParameter, ModelCoreError, RunBusy, RunExists
from model_core.hardware.process_environment import OPENMP
from model_core.launch import DistEnv
from model_core.report import count_train_tokens
from model_core.schedule import effective_steps
from model_core.storage.data_identity import DataIdentity, identify, refuse_changed_data
from model_core.storage.dataset import MANIFEST, Dataset, dataset_of
from model_core.storage.files import Layout, next_free_name
from model_core.storage.run import Run

if TYPE_CHECKING:
    from model_core.hardware.device import Runtime
    from model_core.training.resume import InitReference

_REPORT_EVERY_S = 10.0
_IGNORED_VARIABLES = {
    "PYTORCH_SDP_KERNEL": "device.attention_backend",
    "NVIDIA_TF32_OVERRIDE": "device.tf32",
}


@dataclass(frozen=True)
class OpenedRun:
    """A run that an attempt trains.

    Attributes:
        run: Directory of the run.
        config: Configuration of a new run, resolved if its dataset exists. None for a run that existed before: its
            config.yaml applies.
        init: Checkpoint from which a new run starts; None for step 0.
    """

    run: Run
    config: ExperimentConfig | None = None
    init: InitReference | None = None


def create_or_open_run(
    arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, env: DistEnv
) -> OpenedRun:
    """Create the run, or open the one to resume.

    Args:
        arguments: Arguments of the program: ``resume``, ``overrides``, ``job_id``, ``gpu``, ``token``, ``colour``.
        config: Requested configuration.
        layout: Directories of the data root.
        env: Rank of this process.

    Returns:
        The run; a new one is complete on disk.

    Raises:
        RunExists: The name is taken, and the run is not to be resumed.
        InvalidParameter: The arguments cannot be combined with a run that exists.
        ModelCoreError: The training cannot begin; no run was created.
    """
    path = layout.run(config.experiment_name)
    if arguments.resume:
        if arguments.overrides:
            raise InvalidParameter(
                "--set does not go with --resume: a run's configuration is fixed; "
                "to change it, start a new run with checkpoint.load_checkpoint"
            )
        return OpenedRun(Run.open(path))
    if arguments.job_id and (path / "attempt").exists() and Run(path).attempt()["job_id"] == arguments.job_id:
        return OpenedRun(Run.open(path))
    if path.exists():
        raise RunExists(path.name, next_free_name(path))
    config, init = _check_and_resolve(arguments, config, layout, env)
    return OpenedRun(Run.create(path, config, arguments.job_id, colour=arguments.colour), config, init)


def claim_run(arguments: argparse.Namespace, run: Run) -> int:
    """Make this attempt the owner of a run.

    Args:
        arguments: Arguments of the program: ``attempt``, ``job_id``.
        run: The run; its lock is held.

    Returns:
        Number of the attempt.

    Raises:
        RunBusy: A later attempt owns the run.
    """
    owner: int = run.attempt()["attempt"]
    number = arguments.attempt or max(next_attempt(run.events), owner + 1)
    if owner > number:
        raise RunBusy(run.name)
    run.begin_attempt(number, arguments.job_id)
    return number


def open_dataset(
    run: Run, config: ExperimentConfig, layout: Layout, *, token: Token | None, emit: Emit, stop: ShutdownSignal
) -> tuple[Dataset, DataIdentity]:
    """Open the dataset of a run, prepared first if it is missing, and check that a resumed run continues on its data.

    Args:
        run: The run.
        config: Its configuration.
        layout: Directories of the data root.
        token: Access token for sources with restricted access.
        emit: Writes ``progress`` and ``warning`` events.
        stop: Checked while files are read.

    Returns:
        The complete dataset and its identity.

    Raises:
        DataChanged: The run was trained on other data.
        Stopped: A stop was requested.
        ModelCoreError: See `ensure_dataset`.
    """
    dataset, report_at = dataset_of(config, layout), time.monotonic() + _REPORT_EVERY_S

    def on_block(done: int, of: int) -> None:
        nonlocal report_at
        stop.check()
        if time.monotonic() >= report_at:
            emit("progress", done=done, of=of, unit="bytes of the dataset verified")
            report_at = time.monotonic() + _REPORT_EVERY_S

    def checked() -> DataIdentity:
        identity = identify(dataset, on_block)
        refuse_changed_data(run, dataset, identity.sha256)
        return identity

    # before the dataset is compared with its manifest and the configuration: changed data is the cause of what differs
    identity = None if dataset.missing() else checked()
    ensure_dataset(config, layout, token=token, emit=emit, stop=stop)
    identity = identity or checked()
    for file in identity.edited:
        detail = f"{file} was changed after its preparation: it has another sha256 than {MANIFEST} records"
        emit("warning", code="data_edited", detail=detail)
    return dataset, identity


def resolve_config(config: ExperimentConfig, dataset: Dataset, runtime: Runtime) -> ExperimentConfig:
    """Fix the number of steps and of threads in a configuration.

    Args:
        config: A configuration; one that is resolved already stays as it is.
        dataset: The prepared dataset; its training split decides the steps of ``max_epochs``.
        runtime: Hardware of this process.

    Returns:
        The resolved configuration.

    Raises:
        InvalidConfig: The budget leaves no step after the warm-up.
        InvalidData: The training split is no file of token ids.
    """
    from model_core.data.loader import load_tokens

    steps = effective_steps(config.training, len(load_tokens(dataset.train)))
    return config.resolved(max_steps=steps, threads=runtime.threads)


def emit_start_event(
    emit: Emit, config: ExperimentConfig, runtime: Runtime, gpu: int | None, **facts: Any
) -> None:  # fmt: skip
    """Write the `start` event, and a `warning` event for each setting that has another effect than one may expect.

    Args:
        emit: Writes an event.
        config: Requested configuration.
        runtime: Hardware that is used.
        gpu: Index among the visible GPUs from the command line.
        facts: Further fields of the `start` event.
    """
    ignored = ignored_variables(os.environ)
    emit("start", **_start_facts(config, runtime, gpu, ignored), **facts)
    for code, detail in (*runtime.warnings, *(("variable_ignored", message) for message in ignored)):
        emit("warning", code=code, detail=detail)


def ignored_variables(environment: Mapping[str, str]) -> list[str]:
    """Find environment variables that look like settings and have no effect.

    Args:
        environment: Variables of the process.

    Returns:
        One message for each, with the configuration key to use instead.
    """
    return [
        f"{name} is set in the environment and has no effect; use {key}"
        for name, key in _IGNORED_VARIABLES.items()
        if name in environment
    ]


def _check_and_resolve(
    arguments: argparse.Namespace, config: ExperimentConfig, layout: Layout, env: DistEnv
) -> tuple[ExperimentConfig, InitReference | None]:
    """Refuse what would fail at once, so that no run is created and the name stays free."""
    dataset = dataset_of(config, layout)
    is_prepared = not dataset.missing()
    if is_prepared:
        check_matches(dataset, config.data, read_files=False)
        tokens = count_train_tokens(dataset)
        if tokens is not None and (problems := tuple(check_tokens_suffice(config.training, tokens, env.world_size))):
            raise InvalidConfig(problems)
    elif config.data.source is not None:
        DatasetSpec.of(config.data).open_source(arguments.token)
    else:
        ensure_dataset(config, layout)  # raises, with the command that makes it

    from model_core.training.resume import find_init_checkpoint, load_init_checkpoint
    from model_core.training.setup import choose_runtime
    from model_core.training.tracking import require_trackers

    runtime = choose_runtime(config, env, arguments.gpu)
    require_trackers(config)
    init = find_init_checkpoint(config, layout)
    if init is not None:
        load_init_checkpoint(init, config.model)  # its state is loaded again later: a preparation may take hours
    if is_prepared:
        with contextlib.suppress(ModelCoreError):  # the attempt reports it, in the events of the run
            config = resolve_config(config, dataset, runtime)
    return config, init


def _start_facts(config: ExperimentConfig, runtime: Runtime, gpu: int | None, ignored: list[str]) -> dict[str, Any]:
    """Collect the requested hardware, the used hardware and the environment."""
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
            "openmp": {name: os.environ[name] for name in OPENMP if name in os.environ},
            "ignored": ignored,
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
