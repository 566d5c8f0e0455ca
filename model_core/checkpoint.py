"""Tensors in and out of checkpoints.

Two kinds: weights (model, configuration, tokenizer; enough to write and to look) and the full state, from which
training goes on bit for bit. Files are loaded with ``weights_only``, so a checkpoint cannot run code, and only
after their sha256 was checked: torch would load flipped bits silently.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from model_core.config import ExperimentConfig
from model_core.errors import CheckpointDamaged, ModelCoreError
from model_core.gpt import GPT
from model_core.loading import parse_config
from model_core.records.checkpoint import CheckpointInfo
from model_core.records.run import Run
from model_core.tokenizer import Tokenizer

SCHEMA_VERSION = 1
_WRAPPERS = ("_orig_mod.", "module.")  # added by torch.compile and DDP; never part of a name

State = dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to write or to be looked at, in eval mode and float32."""

    model: GPT
    config: ExperimentConfig
    tokenizer: Tokenizer
    info: CheckpointInfo


def weights_state(model: GPT, config: ExperimentConfig, tokenizer: Tokenizer, step: int) -> State:
    """What every checkpoint holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "model": {clean_name(name): tensor for name, tensor in model.state_dict().items()},
        "config": config.model_dump(mode="json"),
        "tokenizer": tokenizer.to_dict(),
    }


def writer(state: State) -> Callable[[Any], None]:
    """A function that writes a state to the file object that `Run.publish` hands it."""
    return lambda file: torch.save(state, file)


def read_state(run: Run, info: CheckpointInfo) -> tuple[CheckpointInfo, State]:
    """Verify and load a checkpoint.

    Returns:
        What is really in the file, and its content, on the CPU.

    Raises:
        CheckpointDamaged: The bytes are not those written, or not a checkpoint.
        CheckpointNotFound: It was pruned meanwhile.
    """
    with run.opened(info) as (file, found):
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointDamaged(info.file, str(error).partition("\n")[0]) from None
    if not isinstance(state, dict) or not {"model", "config", "tokenizer"} <= state.keys():
        raise CheckpointDamaged(info.file, "it lacks the model, the configuration or the tokenizer")
    return found, state


def newest_full_state(run: Run, on_damaged: Callable[[str], None]) -> tuple[CheckpointInfo, State] | None:
    """The newest state that training can go on from.

    Args:
        run: The run.
        on_damaged: Told about every newer state that could not be used.
    """
    for info in run.full_states():
        try:
            return read_state(run, info)
        except ModelCoreError as error:
            on_damaged(str(error))
    return None


def load_model(run: Run, wanted: str = "best", *, device: str = "cpu") -> LoadedModel:
    """Load a model for writing or looking.

    Args:
        run: The run.
        wanted: As `Run.resolve` takes it.
        device: Where the parameters go.

    Raises:
        CheckpointNotReady: The run has none.
        CheckpointNotFound: It has others.
        CheckpointDamaged: Its bytes are wrong.
    """
    info, state = read_state(run, run.resolve(wanted))
    config = parse_config(state["config"]).config
    with torch.device("meta"), _Uninitialised():  # shapes alone: the numbers come from the file
        model = GPT(config.model)
    model.load_state_dict(clean(state["model"]), assign=True)
    model.tie_head()
    model.requires_grad_(requires_grad=False).to(device).eval()
    return LoadedModel(model, config, Tokenizer.from_dict(state["tokenizer"]), info)


class _Uninitialised(TorchFunctionMode):
    """Skips the initialisation of parameters; on the meta device that would load a compiler first."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def clean(state: State) -> State:
    """Parameter names without the prefixes of wrappers."""
    return {clean_name(name): value for name, value in state.items()}


def clean_name(name: str) -> str:
    """One parameter name without the prefixes of wrappers."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
