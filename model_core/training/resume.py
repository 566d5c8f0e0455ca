"""Where a training starts: step 0, the run's newest intact full state, or `checkpoint.load_checkpoint`.

`load_checkpoint` names a run's checkpoint, by name or path, or a single file: a copy of ours, or nanoGPT's. A full
state continues exactly; from parameters alone a new optimizer starts at step 0. nanoGPT's files hold parameters beside
the model's arguments, with our names and layouts; they also save the buffers of the causal mask.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_core.checkpoint import State, clean, load_file, load_parameters, newest_full_state, read_state
from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_config
from model_core.errors import (
    CheckpointFileNotFound,
    CheckpointMismatch,
    CheckpointRefused,
    FieldProblem,
    InvalidConfig,
)
from model_core.gpt import GPT
from model_core.storage.files import Layout, portable
from model_core.storage.run import Run
from model_core.training.trainer import TrainState

log = logging.getLogger(__name__)

Emit = Callable[..., Any]


@dataclass(frozen=True)
class InitCheckpoint:
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


def load_init_checkpoint(config: ExperimentConfig, layout: Layout) -> InitCheckpoint:
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


def init_from(state: TrainState, origin: InitCheckpoint, emit: Emit) -> None:
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
        load_parameters(state.model, _weights(origin, state), origin.name)
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


def _origin(reference: str, layout: Layout) -> InitCheckpoint:
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
    return InitCheckpoint(f"{run.name}/{info.file}", parse_config(state["config"]).config.model, state, info.full)


def _has_sidecar(path: Path) -> bool:
    """Whether a file is a checkpoint of the run in whose directory it lies."""
    return (path.parent / "config.yaml").is_file() and path.name in {i.file for i in Run(path.parent).checkpoints()}


def _lone(path: Path, reference: str) -> InitCheckpoint:
    """A file without a sidecar."""
    with path.open("rb") as file:
        content = load_file(file, reference)
    if is_nanogpt(content):
        return InitCheckpoint(reference, model_of(content, reference), content, full=False)
    if isinstance(content, dict) and {"model", "config", "tokenizer"} <= content.keys():
        model = parse_config(content["config"]).config.model
        return InitCheckpoint(reference, model, content, full="optimizer" in content)
    keys = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    raise CheckpointRefused(reference, f"it holds {keys or 'nothing'}, and not 'model' beside 'model_args'")


def _weights(origin: InitCheckpoint, state: TrainState) -> State:
    if is_nanogpt(origin.state):
        return weights_of(origin.state, state.model, origin.name)
    return clean(origin.state["model"])


_MASK = re.compile(r"\.attn\.(masked_)?bias$")
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def is_nanogpt(content: Any) -> bool:
    """Whether a loaded file has nanoGPT's form."""
    return isinstance(content, Mapping) and all(
        isinstance(content.get(key), Mapping) for key in ("model", "model_args")
    )


def model_of(content: Mapping[str, Any], file: str) -> ModelConfig:
    """The shape of a nanoGPT model; without a list of heads every layer has the same.

    Args:
        content: With ``model_args``.
        file: For messages.

    Raises:
        CheckpointRefused: The arguments are no model of ours.
    """
    known = {key: value for key, value in content["model_args"].items() if key in ModelConfig.model_fields}
    try:
        return ModelConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("model_args", *first["loc"])))
        raise CheckpointRefused(file, f"{place}: {first['msg']}, got {str(first['input'])[:100]}") from None


def weights_of(content: Mapping[str, Any], model: GPT, file: str) -> dict[str, Tensor]:
    """The weights of a nanoGPT checkpoint under the names that a model of ours has.

    Args:
        content: With ``model``.
        model: Of the shape of `model_of`; it is only asked for names and shapes.
        file: For messages.

    Returns:
        Without the masks; biases that the other model does without are zero.

    Raises:
        CheckpointMismatch: Its head does not read with the token embedding, as ours does.
    """
    weights = {name: tensor for name, tensor in clean(content["model"]).items() if not _MASK.search(name)}
    if _EMBEDDING in weights and not torch.equal(weights.setdefault(_HEAD, weights[_EMBEDDING]), weights[_EMBEDDING]):
        raise CheckpointMismatch(f"{file} has a head of its own; here {_HEAD} and {_EMBEDDING} are one")
    if not any(name.endswith(".bias") for name in weights):
        ours = model.state_dict()
        weights |= {name: torch.zeros_like(ours[name]) for name in ours if name.endswith(".bias")}
    return weights


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
    if (before := saved.get("processes", 1)) != state.ranks.world_size:
        detail = (
            f"{info.file} is of {before} processes, and {state.ranks.world_size} go on from it: no text is skipped or"
        )
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


def begin(state: TrainState, run: Run, layout: Layout, emit: Any) -> None:
    """Put a state where the training begins: at the run's newest full state, another's checkpoint, or the seed.

    Raises:
        CheckpointMismatch: The state is not this configuration's, or not that of the other processes.
    """
    resume(state, run, emit)
    if state.step == 0 and state.config.checkpoint.load_checkpoint:
        init_from(state, load_init_checkpoint(state.config, layout), emit)
        state.resize(state.config.training.batch_size)  # what did not fit elsewhere may fit here
    state.ranks.check_that_all_begin_alike(state.model, state.step)
