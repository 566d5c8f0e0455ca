"""Where a training starts: step 0, the run's newest intact full state, or `checkpoint.load_checkpoint`.

`load_checkpoint` names the checkpoint of a run, by name or path, or a single file: a copy of ours, or nanoGPT's. A full
state continues exactly; from parameters alone a new optimizer starts at step 0. nanoGPT's files hold parameters beside
the model's arguments, with our names and layouts; some versions also save the buffers of the causal mask.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_core.checkpoint import State, clean, load_file, load_parameters, newest_full_state, read_state
from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_saved
from model_core.config_validation import model_differences, tree_differences
from model_core.entrypoint import Emit
from model_core.errors import (
    CheckpointFileNotFound,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointRefused,
    DataChanged,
    FieldProblem,
    InvalidConfig,
)
from model_core.gpt import GPT
from model_core.storage.checkpoints import FALLBACK, CheckpointInfo, fallback_detail
from model_core.storage.files import Layout, portable
from model_core.storage.run import Run
from model_core.training.trainer import TrainState
from model_core.yaml_core import describe

log = logging.getLogger(__name__)

_MASK = re.compile(r"\.attn\.(masked_)?bias$")
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


@dataclass(frozen=True)
class InitReference:
    """The file that `checkpoint.load_checkpoint` names.

    Attributes:
        written: The reference as the configuration states it.
        file: Checkpoint of a run, or path of a file without a sidecar.
    """

    written: str
    file: tuple[Run, CheckpointInfo] | Path


@dataclass(frozen=True)
class InitCheckpoint:
    """A checkpoint from which a new run starts.

    Attributes:
        name: Name in messages and events: ``run/file``, or the path of a file as it was written.
        model: Shape of the model.
        state: Content of the file.
        full: Whether it is a full state, from which training continues exactly.
        fallback: Why it is another file than the reference usually names; None if it is not.
    """

    name: str
    model: ModelConfig
    state: State
    full: bool
    fallback: str | None = None


def begin(state: TrainState, run: Run, layout: Layout, emit: Emit, init: InitReference | None = None) -> None:
    """Put a state where the training begins: at the run's newest full state, another's checkpoint, or the seed.

    Args:
        state: State at step 0; it is changed.
        run: The run that is trained.
        layout: Directories of the data root, for `checkpoint.load_checkpoint`.
        emit: Writes ``resumed`` and ``warning`` events.
        init: The resolved `checkpoint.load_checkpoint` of a new run; None resolves it if it is needed.

    Raises:
        CheckpointMismatch: The state does not belong to this configuration, or the processes read different states.
    """
    resume(state, run, emit)
    if state.step == 0 and state.config.checkpoint.load_checkpoint:
        init_from(state, reload_init_checkpoint(init, state.config, layout), emit)
        state.resize(state.config.training.batch_size)  # what did not fit elsewhere may fit here
    state.process_group.check_that_all_begin_alike(state.model, state.step)


def resume(state: TrainState, run: Run, emit: Emit) -> None:
    """Continue from the run's newest intact full state; from the start if there is none.

    Args:
        state: State that was built from the run's configuration; it is changed.
        run: Run with the full states.
        emit: Writes ``resumed``, and ``warning`` for each damaged state, for a state that does not name its data, and
            for another number of processes.

    Raises:
        DataChanged: The state was trained on other data.
        CheckpointMismatch: Configuration or tokenizer differ from those of the state.
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
    theirs = parse_saved(saved["config"], state.config)
    here, there = (config.model_dump(mode="json") for config in (state.config, theirs))
    if different := tree_differences(here, there, there=info.file):
        raise CheckpointMismatch(f"{info.file} and config.yaml differ: {'; '.join(different)}")
    if _is_other_data(state, saved, info.file, emit):
        dataset, trained, ours = state.config.data.dataset_name, saved["data_sha256"], str(state.data_sha256)
        raise DataChanged(run.name, info.file, dataset, trained, ours)
    check_tokenizer(state, saved, info.file)
    state.restore(saved)
    if (before := saved.get("processes", 1)) != state.process_group.world_size:
        change = f"{info.file} is of {before} processes, and {state.process_group.world_size} continue from it"
        detail = f"{change}: no text is skipped or repeated, and the last bits of losses are others"
        emit("warning", code="processes_changed", detail=detail)
    emit("resumed", file=info.file, step=info.step)
    log.info("resumed run=%s file=%s step=%d", run.name, info.file, info.step)


def find_init_checkpoint(config: ExperimentConfig, layout: Layout) -> InitReference | None:
    """Resolve `checkpoint.load_checkpoint`.

    Args:
        config: The key is ``RUN[/FILE]``, or the path of a file.
        layout: Directories of the data root.

    Returns:
        The file; None if the key is not set.

    Raises:
        CheckpointFileNotFound: There is no such run and no such file.
        CheckpointNotFound: The run does not have this checkpoint.
        CheckpointNotReady: The run has no checkpoint yet.
    """
    reference = config.checkpoint.load_checkpoint
    if not reference:
        return None
    path = portable(reference)
    name, _, file = reference.partition("/")
    if path.is_file() and not _has_sidecar(path):
        return InitReference(reference, path)
    if path.is_file():
        run, file = Run(path.parent), path.name
    elif (layout.exp / name).is_dir():
        run = Run.open(layout.run(name))
    else:
        raise CheckpointFileNotFound(reference)
    return InitReference(reference, (run, run.resolve_start(file)))


def load_init_checkpoint(reference: InitReference, model: ModelConfig) -> InitCheckpoint:
    """Load the checkpoint from which a new run starts.

    Args:
        reference: The resolved file.
        model: Model of the new run.

    Returns:
        The checkpoint; its model has the shape of `model`.

    Raises:
        CheckpointDamaged: The file is not a checkpoint.
        CheckpointRefused: It holds Python objects, or something else than a model.
        CheckpointMismatch: Its model has another shape.
    """
    init = _load(reference)
    where = f"checkpoint.load_checkpoint {reference.written!r}"
    if different := model_differences(model, init.model, there=where):
        raise CheckpointMismatch("; ".join(different))
    return init


def reload_init_checkpoint(init: InitReference | None, config: ExperimentConfig, layout: Layout) -> InitCheckpoint:
    """Load the checkpoint from which a new run starts, long after its reference was resolved.

    Args:
        init: The resolved file; None if it has not been resolved.
        config: Configuration with `checkpoint.load_checkpoint`.
        layout: Directories of the data root.

    Returns:
        The checkpoint; if the file was pruned since, the one that the reference names now.

    Raises:
        CheckpointNotFound: The run does not have this checkpoint any more.
        CheckpointMismatch: Its model has another shape.
    """
    if init is not None:
        with contextlib.suppress(CheckpointNotFound):
            return load_init_checkpoint(init, config.model)
    found = find_init_checkpoint(config, layout)
    assert found is not None
    return load_init_checkpoint(found, config.model)


def init_from(state: TrainState, init: InitCheckpoint, emit: Emit) -> None:
    """Start a new run from the state of another.

    Args:
        state: State of the new run; it is changed.
        init: Checkpoint of the same shape.
        emit: Writes ``resumed``, or ``warning`` when the checkpoint has parameters alone; ``warning`` too when it
            was trained on other data, which this run reads from the beginning.

    Raises:
        CheckpointMismatch: The other model has another tokenizer, or other parameters than its configuration.
        InvalidConfig: The state is at or beyond the last step of this run.
    """
    check_tokenizer(state, init.state, init.name)
    if init.fallback is not None:
        emit("warning", code=FALLBACK, detail=init.fallback)
    if not init.full:
        load_parameters(state.model, _state_dict(init, state.model), init.name)
        detail = f"{init.name} holds weights alone: a new optimizer begins at step 0"
        emit("warning", code="weights_only", detail=detail)
        return
    if init.state["step"] >= state.max_steps:
        detail = f"{state.max_steps} is not above the {init.state['step']} steps that {init.name!r} has done"
        raise InvalidConfig((FieldProblem("/training/max_steps", detail, state.max_steps),))
    state.restore(init.state)
    if _is_other_data(state, init.state, init.name, emit):
        state.loader.position = 0
        detail = f"{init.name} was trained on other data: this run reads its own from the beginning"
        emit("warning", code=DataChanged.code, detail=detail)
    state.val_loss, state.val_step, state.best_val_loss, state.best_step = None, -1, math.inf, -1
    emit("resumed", file=init.name, step=state.step)


def check_tokenizer(state: TrainState, saved: State, file: str) -> None:
    """Refuse a state whose token ids have another meaning than the dataset's.

    Args:
        state: State with the dataset's tokenizer.
        saved: Content of the checkpoint.
        file: Name of the checkpoint, for messages.

    Raises:
        CheckpointMismatch: The tokenizers differ; the message has both hashes.
    """
    theirs, ours = saved.get("tokenizer", {}).get("sha256"), state.tokenizer.sha256
    if theirs not in {None, ours}:  # nanoGPT keeps no tokenizer
        detail = f"was trained with the tokenizer {theirs[:8]}..., and the dataset has {ours[:8]}..."
        raise CheckpointMismatch(f"{file} {detail}")


def is_nanogpt(content: Any) -> bool:
    """Recognize the content of a nanoGPT checkpoint.

    Args:
        content: Content of a loaded file.

    Returns:
        Whether it has the form of nanoGPT's checkpoints.
    """
    return isinstance(content, Mapping) and all(
        isinstance(content.get(key), Mapping) for key in ("model", "model_args")
    )


def nanogpt_model(content: Mapping[str, Any], file: str) -> ModelConfig:
    """Read the shape of a nanoGPT model; without a list of heads all layers have the same number.

    Args:
        content: Content of the checkpoint, with ``model_args``.
        file: Name of the checkpoint, for messages.

    Returns:
        The shape.

    Raises:
        CheckpointRefused: The arguments do not describe a model that we can build.
    """
    known = {key: value for key, value in content["model_args"].items() if key in ModelConfig.model_fields}
    try:
        return ModelConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model_args", *first["loc"])))
        raise CheckpointRefused(file, f"{key}: {first['msg']}, got {str(first['input'])[:100]}") from None


def nanogpt_state_dict(content: Mapping[str, Any], model: GPT, file: str) -> dict[str, Tensor]:
    """Convert the parameters of a nanoGPT checkpoint to a state_dict of our model.

    Args:
        content: Content of the checkpoint, with ``model``.
        model: Model of the shape of `nanogpt_model`, for names and shapes.
        file: Name of the checkpoint, for messages.

    Returns:
        Parameters by name, without causal masks; biases that the checkpoint does not have are zero.

    Raises:
        CheckpointMismatch: Head and token embedding are two tensors; in our model they are one.
    """
    parameters = {name: tensor for name, tensor in clean(content["model"]).items() if not _MASK.search(name)}
    if _EMBEDDING in parameters:
        embedding = parameters[_EMBEDDING]
        if not torch.equal(parameters.setdefault(_HEAD, embedding), embedding):
            raise CheckpointMismatch(f"{file} has a head of its own; here {_HEAD} and {_EMBEDDING} are one")
    if not any(name.endswith(".bias") for name in parameters):
        ours = model.state_dict()
        parameters |= {name: torch.zeros_like(ours[name]) for name in ours if name.endswith(".bias")}
    return parameters


def _is_other_data(state: TrainState, saved: State, file: str, emit: Emit) -> bool:
    """Whether a full state was trained on other data; a warning if an earlier version wrote it, which did not say."""
    if (theirs := saved.get("data_sha256")) is None:
        detail = f"{file} does not record on which data it was trained; it continues on data_sha256 {state.data_sha256}"
        emit("warning", code="data_unknown", detail=detail)
    return theirs not in {None, state.data_sha256}


def _has_sidecar(path: Path) -> bool:
    """Whether a file is a checkpoint of the run whose directory it is in."""
    return (path.parent / "config.yaml").is_file() and path.name in {i.file for i in Run(path.parent).checkpoints()}


def _load(reference: InitReference) -> InitCheckpoint:
    if isinstance(reference.file, Path):
        return _load_without_sidecar(reference.file, reference.written)
    run, info = reference.file
    info, state = read_state(run, info)
    model, fallback = parse_saved(state["config"]).model, fallback_detail(reference.written.partition("/")[2], info)
    return InitCheckpoint(f"{run.name}/{info.file}", model, state, info.full, fallback)


def _load_without_sidecar(path: Path, reference: str) -> InitCheckpoint:
    with path.open("rb") as file:
        content = load_file(file, reference)
    if is_nanogpt(content):
        return InitCheckpoint(reference, nanogpt_model(content, reference), content, full=False)
    if isinstance(content, dict) and {"model", "config", "tokenizer"} <= content.keys():
        return InitCheckpoint(reference, parse_saved(content["config"]).model, content, full="optimizer" in content)
    keys = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else describe(content)
    raise CheckpointRefused(reference, f"it holds {keys or 'nothing'}, and not 'model' beside 'model_args'")


def _state_dict(init: InitCheckpoint, model: GPT) -> State:
    if is_nanogpt(init.state):
        return nanogpt_state_dict(init.state, model, init.name)
    return clean(init.state["model"])
