"""Where a new run begins: what `checkpoint.load_checkpoint` names.

A run's checkpoint, by name or by path, or a file that lies alone: one of ours that was copied, or nanoGPT's. A
full state is gone on from exactly; of weights a new optimizer makes something at step 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_core.checkpoint import State, clean, load_file, load_weights, read_state
from model_core.config import ExperimentConfig, ModelConfig
from model_core.errors import FieldProblem, InvalidConfig
from model_core.loading import parse_config
from model_core.records.errors import CheckpointFileNotFound, CheckpointMismatch, CheckpointRefused
from model_core.records.files import Layout, portable
from model_core.records.run import Run
from model_core.training.nanogpt import is_nanogpt, model_of, weights_of
from model_core.training.state import TrainState

Emit = Callable[..., Any]


@dataclass(frozen=True)
class Origin:
    """A checkpoint to begin with.

    Attributes:
        name: For messages and events: ``run/file``, or a file's path as it was written.
        model: The shape of the model in it.
        state: What it holds.
        full: Whether training can go on from it exactly.
    """

    name: str
    model: ModelConfig
    state: State
    full: bool


def find_origin(config: ExperimentConfig, layout: Layout) -> Origin:
    """Load the checkpoint that a new run is to begin with.

    Args:
        config: `checkpoint.load_checkpoint` is ``RUN[/FILE]``, or the path of a file; `model` is what the run will be.
        layout: Where runs lie.

    Raises:
        CheckpointFileNotFound: No run and no file is there.
        CheckpointNotFound: The run has no such checkpoint; CheckpointNotReady: it has none.
        CheckpointDamaged: The bytes are not a checkpoint's.
        CheckpointRefused: It holds objects, or something else than a model.
        CheckpointMismatch: The model there has another shape.
    """
    reference = config.checkpoint.load_checkpoint or ""
    origin = _origin(reference, layout)
    theirs, ours = origin.model.shape, config.model.shape
    different = [f"model.{key} is {theirs[key]} there and {ours[key]} here" for key in ours if theirs[key] != ours[key]]
    if different:
        raise CheckpointMismatch(f"checkpoint.load_checkpoint {reference!r}: {'; '.join(different)}")
    return origin


def start_from(state: TrainState, origin: Origin, emit: Emit) -> None:
    """Begin a new run with the state of another.

    Args:
        state: The new run's.
        origin: Of the same shape.
        emit: Told ``resumed``, or ``warning`` when there are weights alone.

    Raises:
        CheckpointMismatch: The model there reads another tokenizer's ids, or its weights are not those it describes.
        InvalidConfig: The state there is at or beyond this run's last step.
    """
    check_tokenizer(state, origin.state, origin.name)
    if not origin.full:
        load_weights(state.model, _weights(origin, state), origin.name)
        detail = f"{origin.name} holds weights alone: a new optimizer begins at step 0"
        emit("warning", code="weights_only", detail=detail)
        return
    if origin.state["step"] >= state.max_steps:
        detail = f"{state.max_steps} is not above the {origin.state['step']} steps that {origin.name!r} has done"
        raise InvalidConfig((FieldProblem("/training/max_steps", detail, state.max_steps),))
    state.restore(origin.state)
    state.val_loss, state.val_step, state.best_val_loss, state.best_step = None, -1, math.inf, -1
    emit("resumed", file=origin.name, step=state.step)


def check_tokenizer(state: TrainState, saved: State, file: str) -> None:
    """Refuse a state whose token ids mean something else than the dataset's.

    Raises:
        CheckpointMismatch: With both hashes.
    """
    theirs, ours = saved.get("tokenizer", {}).get("sha256"), state.tokenizer.sha256
    if theirs not in {None, ours}:  # nanoGPT keeps no tokenizer
        detail = f"was trained with the tokenizer {theirs[:8]}..., and the dataset has {ours[:8]}..."
        raise CheckpointMismatch(f"{file} {detail}")


def _origin(reference: str, layout: Layout) -> Origin:
    path = portable(reference)
    name, _, file = reference.partition("/")
    if path.is_file() and not _has_sidecar(path):
        return _lone(path, reference)
    if path.is_file():
        run, file = Run(path.parent), path.name
    elif (layout.exp / name).is_dir():
        run = Run.open(layout.run(name))
    else:
        raise CheckpointFileNotFound(reference)
    info, state = read_state(run, run.resolve_start(file))
    return Origin(f"{run.name}/{info.file}", parse_config(state["config"]).config.model, state, info.full)


def _has_sidecar(path: Path) -> bool:
    """Whether a file is a checkpoint of the run in whose directory it lies."""
    return (path.parent / "config.yaml").is_file() and path.name in {i.file for i in Run(path.parent).checkpoints()}


def _lone(path: Path, reference: str) -> Origin:
    """A file without a sidecar."""
    with path.open("rb") as file:
        content = load_file(file, reference)
    if is_nanogpt(content):
        return Origin(reference, model_of(content, reference), content, full=False)
    if isinstance(content, dict) and {"model", "config", "tokenizer"} <= content.keys():
        model = parse_config(content["config"]).config.model
        return Origin(reference, model, content, full="optimizer" in content)
    keys = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    raise CheckpointRefused(reference, f"it holds {keys or 'nothing'}, and not 'model' beside 'model_args'")


def _weights(origin: Origin, state: TrainState) -> State:
    if is_nanogpt(origin.state):
        return weights_of(origin.state, state.model, origin.name)
    return clean(origin.state["model"])
