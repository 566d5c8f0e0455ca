"""From a configuration to a `TrainState` ready for its first step, new or continued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from model_core.checkpoint import newest_full_state
from model_core.config import ExperimentConfig
from model_core.data.loader import LoaderConfig, TokenLoader, load_tokens
from model_core.errors import InvalidConfig
from model_core.gpt import GPT
from model_core.hardware.compiled import compiled
from model_core.hardware.device import Runtime
from model_core.loading import parse_config
from model_core.optim import make_optimizer
from model_core.records.dataset import Dataset
from model_core.records.errors import CheckpointMismatch
from model_core.records.run import Run
from model_core.rules import whole_steps
from model_core.training.origin import check_tokenizer
from model_core.training.ranks import Ranks
from model_core.training.state import TrainState

log = logging.getLogger(__name__)

Emit = Callable[..., Any]


def assemble(
    config: ExperimentConfig, runtime: Runtime, dataset: Dataset, emit: Emit, ranks: Ranks | None = None
) -> TrainState:
    """Build model, optimizer and loader from the seed.

    Args:
        config: Resolved: max_steps and threads are what will be used.
        runtime: Where it runs.
        dataset: Its training split and tokenizer.
        emit: Told ``warning``.
        ranks: The processes that train together; None: this one alone.

    Raises:
        InvalidConfig: A step's rows cannot be shared among so many.
    """
    training, ranks = config.training, ranks or Ranks()
    if problems := tuple(whole_steps(training, ranks.world)):
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
        ranks.place.rank,
        ranks.world,
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
        ranks=ranks,
    )


def resume(state: TrainState, run: Run, emit: Emit) -> None:
    """Go on from the run's newest intact full state; from the start if there is none.

    Args:
        state: Assembled from the run's configuration.
        run: Where states are looked for.
        emit: Told ``resumed``, and ``warning`` about every state that is damaged or of another number of processes.

    Raises:
        CheckpointMismatch: Configuration or tokenizer are not those of the state.
    """

    def on_damaged(detail: str) -> None:
        emit("warning", code="checkpoint_damaged", detail=detail)
        log.warning("state passed over: %s", detail)

    found = newest_full_state(run, on_damaged)
    if found is None:
        if run.full_states():
            on_damaged(f"no full state of run {run.name!r} is intact: training begins anew")
        return
    info, saved = found
    theirs = parse_config(saved["config"]).config  # keys that an earlier version did not have get their defaults
    if different := differences(theirs.model_dump(mode="json"), state.config.model_dump(mode="json")):
        raise CheckpointMismatch(f"{info.file} and config.yaml differ: {'; '.join(different)}")
    check_tokenizer(state, saved, info.file)
    state.restore(saved)
    if (before := saved.get("processes", 1)) != state.ranks.world:
        detail = f"{info.file} is of {before} processes, and {state.ranks.world} go on from it: no text is skipped or"
        emit("warning", code="processes_changed", detail=f"{detail} repeated, and the last bits of losses are others")
    emit("resumed", file=info.file, step=info.step)
    log.info("resumed run=%s file=%s step=%d", run.name, info.file, info.step)


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
