"""From a configuration to a `TrainState` ready for its first step, new or continued."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from model_core.checkpoint import clean, newest_full_state, read_state
from model_core.compiled import compiled
from model_core.config import ExperimentConfig
from model_core.data.loader import LoaderConfig, TokenLoader, load_tokens
from model_core.device import Runtime
from model_core.errors import CheckpointMismatch, FieldProblem, InvalidConfig
from model_core.gpt import GPT
from model_core.optim import make_optimizer
from model_core.records.checkpoint import CheckpointInfo
from model_core.records.dataset import Dataset
from model_core.records.files import Layout, portable
from model_core.records.run import Run
from model_core.trainer import TrainState

log = logging.getLogger(__name__)

Emit = Callable[..., Any]


def assemble(config: ExperimentConfig, runtime: Runtime, dataset: Dataset, emit: Emit) -> TrainState:
    """Build model, optimizer and loader from the seed.

    Args:
        config: Resolved: max_steps and threads are what will be used.
        runtime: Where it runs.
        dataset: Its training split and tokenizer.
        emit: Told ``warning``.
    """
    training = config.training
    torch.manual_seed(config.device.seed)
    model = GPT(config.model).to(runtime.device)
    model.gradient_checkpointing = training.gradient_checkpointing
    loader = LoaderConfig(
        training.batch_size,
        training.sequence_length,
        config.data.shuffle,
        config.device.seed,
        config.model.vocab_size,
    )
    return TrainState(
        config=config,
        runtime=runtime,
        model=model,
        tokenizer=dataset.tokenizer(),
        optimizer=make_optimizer(model, training, fused=runtime.fused_adamw),
        scaler=torch.amp.GradScaler(runtime.device_type, enabled=runtime.scaler),
        loader=TokenLoader(
            load_tokens(dataset.train), loader, device=runtime.device, pinned=runtime.pinned, name=dataset.train.name
        ),
        forward=compiled(model, runtime.compile_mode, emit) if runtime.compile_mode else model,
    )


def resume(state: TrainState, run: Run, emit: Emit) -> None:
    """Go on from the run's newest intact full state; from the start if there is none."""

    def on_damaged(detail: str) -> None:
        emit("warning", code="checkpoint_damaged", detail=detail)
        log.warning("state passed over: %s", detail)

    found = newest_full_state(run, on_damaged)
    if found is not None:
        info, saved = found
        if different := differences(saved["config"], state.config.model_dump(mode="json")):
            raise CheckpointMismatch(f"{info.file} and config.yaml differ: {'; '.join(different)}")
        state.restore(saved)
        emit("resumed", file=info.file, step=info.step)
        log.info("resumed run=%s file=%s step=%d", run.name, info.file, info.step)


def start_from(state: TrainState, reference: str, layout: Layout, emit: Emit) -> None:
    """Begin a new run with the state of another.

    Args:
        state: The new run's.
        reference: ``RUN[/FILE]``, or the path of a checkpoint in a run directory.
        layout: Where runs lie.
        emit: Told ``resumed``, or ``warning`` when the file holds weights alone.

    Raises:
        CheckpointMismatch: The model there has another shape.
        InvalidConfig: The state there is at or beyond this run's last step.
    """
    run, wanted = referred(reference, layout)
    info, saved = read_state(run, wanted)
    if different := differences(saved["config"]["model"], state.config.model.model_dump(mode="json")):
        raise CheckpointMismatch(f"checkpoint.load_checkpoint {reference!r}: {'; '.join(different)}")
    if info.full:
        if saved["step"] >= state.max_steps:
            detail = f"{state.max_steps} is not above the {saved['step']} steps that {reference!r} has done"
            raise InvalidConfig((FieldProblem("/training/max_steps", detail, state.max_steps),))
        state.restore(saved)
        state.val_loss, state.val_step, state.best_val_loss, state.best_step = None, -1, math.inf, -1
        emit("resumed", file=f"{run.name}/{info.file}", step=info.step)
    else:
        state.model.load_state_dict(clean(saved["model"]))
        detail = f"{run.name}/{info.file} holds weights alone: a new optimizer begins at step 0"
        emit("warning", code="weights_only", detail=detail)


def referred(reference: str, layout: Layout) -> tuple[Run, CheckpointInfo]:
    """Find what `checkpoint.load_checkpoint` names.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotFound: It has no such checkpoint.
        CheckpointNotReady: It has none.
    """
    path = portable(reference)
    if path.is_file():
        run, file = Run.open(path.parent), path.name
    else:
        name, _, file = reference.partition("/")
        run = Run.open(layout.run(name))
    return run, run.resolve_start(file)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str = "") -> list[str]:
    """Keys whose values differ between a checkpoint's configuration and the present one, with both values."""
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{place}{key}.")
        elif there != here:
            found.append(f"{place}{key} is {there} there and {here} here")
    return found
