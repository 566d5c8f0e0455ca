"""From a configuration to a `TrainState` that is ready for its first step.

Includes torch.compile, which falls back to the eager model when the compiler fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model_core.config import ExperimentConfig
from model_core.config_validation import check_batch_divides
from model_core.data.loader import LoaderConfig, TokenLoader, load_tokens
from model_core.entrypoint import Emit
from model_core.errors import (
    DeviceUnavailable,
    InvalidConfig,
    is_out_of_memory,
)
from model_core.gpt import GPT, Forward
from model_core.hardware import device
from model_core.hardware.device import Runtime, describe_machine
from model_core.launch import DistEnv
from model_core.optim import make_optimizer
from model_core.storage.data_identity import identify
from model_core.storage.dataset import Dataset
from model_core.training.distributed import ProcessGroup
from model_core.training.trainer import TrainState

log = logging.getLogger(__name__)


def choose_runtime(config: ExperimentConfig, env: DistEnv, gpu: int | None = None) -> device.Runtime:
    """Choose the hardware of one process.

    Args:
        config: Requested hardware.
        env: Rank of the process. One of several takes the GPU of its local rank and, unless OMP_NUM_THREADS is set, a
            share of the cores.
        gpu: Index among the visible GPUs from the command line.

    Returns:
        The hardware to use.

    Raises:
        DeviceUnavailable: The requested device does not exist, or processes cannot share it.
    """
    machine = describe_machine()
    if env.world_size == 1:
        return device.decide(config, machine, gpu)
    if machine.gpus and config.device.device in {"auto", "cuda"}:
        gpu = env.local_rank
    machine = replace(machine, cores=max(1, machine.cores // env.local_world))
    runtime = device.decide(config, machine, gpu)
    if runtime.device_type == "mps":
        raise DeviceUnavailable(f"{env.world_size} processes cannot share a Metal device; set device.device to cpu")
    return runtime


def build_train_state(
    config: ExperimentConfig, runtime: Runtime, dataset: Dataset, emit: Emit, process_group: ProcessGroup | None = None,
    *, data_sha256: str | None = None,
) -> TrainState:  # fmt: skip
    """Build model, optimizer and loader from the seed.

    Args:
        config: Resolved configuration.
        runtime: Hardware to use.
        dataset: Dataset with the training split and the tokenizer.
        emit: Writes ``warning`` events.
        process_group: Processes that train together; None means this process alone.
        data_sha256: Identity of the dataset, which every full state records; None computes it.

    Returns:
        The state before step 0.

    Raises:
        InvalidConfig: The rows of a step cannot be divided among the processes.
    """
    training, process_group = config.training, process_group or ProcessGroup()
    if problems := tuple(check_batch_divides(training, process_group.world_size)):
        raise InvalidConfig(problems)
    torch.manual_seed(config.device.seed)
    model = GPT(config.model).to(runtime.device)
    model.gradient_checkpointing = training.gradient_checkpointing
    loader = LoaderConfig(
        training.batch_size,
        training.sequence_length,
        config.data.shuffle,
        config.device.seed,
        config.model.vocab_size,
        process_group.env.rank,
        process_group.world_size,
    )
    return TrainState(
        config=config,
        runtime=runtime,
        model=model,
        tokenizer=dataset.tokenizer(),
        optimizer=make_optimizer(model, training, fused=runtime.fused_adamw),
        scaler=torch.amp.GradScaler(runtime.device_type, enabled=runtime.scaler),
        loader=TokenLoader(
            load_tokens(dataset.train),
            loader,
            device=runtime.device,
            pin_memory=runtime.pinned,
            name=dataset.train.name,
        ),
        forward=compiled(model, runtime.compile_mode, emit) if runtime.compile_mode else model,
        process_group=process_group,
        data_sha256=data_sha256 or identify(dataset).sha256,
    )


def compiled(model: GPT, mode: str, emit: Callable[..., Any]) -> Forward:
    """Compile a model; its parameters stay the model's own, so checkpoints are the same.

    Args:
        model: Model to compile.
        mode: Mode of `torch.compile`.
        emit: Writes a ``warning`` event when the compiler fails.

    Returns:
        The compiled forward pass, which falls back to the model.
    """
    return with_eager_fallback(torch.compile(model, mode=mode), model, emit)


def with_eager_fallback(first: Forward, model: Forward, emit: Callable[..., Any]) -> Forward:
    """Wrap a compiled forward pass: when a call fails, this and all later calls use the eager model.

    Args:
        first: Compiled forward pass.
        model: Eager model. An out-of-memory error is raised instead of falling back.
        emit: Writes a ``warning`` event.

    Returns:
        The forward pass.
    """
    chosen: list[Forward] = [first]

    def forward(idx: Tensor, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
        try:
            return chosen[0](idx, targets)
        except Exception as error:
            if chosen[0] is model or is_out_of_memory(error):
                raise
            emit("warning", code="compile_failed", detail=f"{type(error).__name__}: {str(error)[:300]}")
            chosen[0] = model
            return forward(idx, targets)

    return forward
