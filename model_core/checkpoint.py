"""Tensors in and out of checkpoints.

There are two kinds: parameters with configuration and tokenizer, enough for inference, and the full state, from which
training continues bit for bit. Files are loaded with ``weights_only``, so a checkpoint cannot run code, and only
after their sha256 was checked, because torch loads flipped bits silently.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_saved
from model_core.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointNotFound,
    CheckpointRefused,
    InvalidData,
)
from model_core.gpt import GPT
from model_core.storage.checkpoints import FALLBACK, CheckpointInfo, fallback_detail
from model_core.storage.files import LFS_POINTER
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# Added by torch.compile, DDP, FSDP and activation checkpointing; never part of a name.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_UNREADABLE = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError, TypeError, AssertionError,
)  # fmt: skip
_OBJECT = re.compile(r"GLOBAL (\S+)")  # in torch.load's message: an object that only its own code can build

State = dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model for inference, in eval mode and float32.

    Attributes:
        model: The model.
        config: Configuration of its run.
        tokenizer: Tokenizer of its dataset.
        info: Sidecar of the checkpoint.
    """

    model: GPT
    config: ExperimentConfig
    tokenizer: Tokenizer
    info: CheckpointInfo


def parameters_state(model: GPT, config: ExperimentConfig, tokenizer: Tokenizer, step: int) -> State:
    """Collect what every checkpoint contains.

    Args:
        model: The model.
        config: Configuration of its run.
        tokenizer: Tokenizer of its dataset.
        step: Optimizer updates done.

    Returns:
        Content of a checkpoint without the full state; the tensors are those of the model.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "model": {clean_name(name): tensor for name, tensor in model.state_dict().items()},
        "config": config.model_dump(mode="json"),
        "tokenizer": tokenizer.to_dict(),
    }


def writer(state: State) -> Callable[[Any], None]:
    """Return a function that writes a state to a file object, for `Run.publish`.

    Args:
        state: Content of the checkpoint.

    Returns:
        The function.
    """
    return lambda file: torch.save(state, file)


def read_state(run: Run, info: CheckpointInfo) -> tuple[CheckpointInfo, State]:
    """Verify and load a checkpoint.

    Args:
        run: The run.
        info: Sidecar of the checkpoint.

    Returns:
        The sidecar that describes the bytes in the file, and the content, on the CPU.

    Raises:
        CheckpointDamaged: The bytes are not those of a sidecar, or not a checkpoint.
        CheckpointNotFound: The checkpoint was deleted meanwhile.
        CheckpointMismatch: The checkpoint is from a later version of this program.
    """
    with run.opened(info) as (file, found):
        state = load_file(file, info.file)
    if not isinstance(state, dict) or not {"model", "config", "tokenizer"} <= state.keys():
        raise CheckpointDamaged(info.file, "it lacks the model, the configuration or the tokenizer")
    if (version := state.get("schema_version", SCHEMA_VERSION)) > SCHEMA_VERSION:
        detail = f"has schema_version {version}, from a later version of this program; this one reads {SCHEMA_VERSION}"
        raise CheckpointMismatch(f"{info.file} {detail}")
    return found, state


def load_file(file: BinaryIO, name: str) -> Any:
    """Load the content of a file on the CPU, without running code from it.

    Args:
        file: File object, open for reading.
        name: Name of the file, for messages.

    Returns:
        The content.

    Raises:
        CheckpointRefused: It holds Python objects other than tensors and plain values.
        CheckpointDamaged: It is not a file of torch.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if met := _OBJECT.search(str(error)):
            reason = f"it holds a pickled {met[1]}, and unpickling one can run any code"
            raise CheckpointRefused(name, reason) from None
        file.seek(0)
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointDamaged(name, "it is a Git LFS pointer; run `git lfs pull` in its folder") from None
        raise CheckpointDamaged(name, f"torch cannot read it ({type(error).__name__})") from None


def read_tokenizer(run: Run, file: str) -> tuple[Tokenizer, int]:
    """Read the tokenizer of a checkpoint without its tensors.

    The file is mapped into memory, and its hash is not verified, which would read all of it: the record of a tokenizer
    has a hash of its own.

    Args:
        run: The run.
        file: File name of the checkpoint.

    Returns:
        The tokenizer, and the positions of the model.

    Raises:
        CheckpointDamaged: The file is not a checkpoint, or its tokenizer does not have its hash.
        CheckpointNotFound: There is no such file.
    """
    path = run.path / file
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Tokenizer.from_dict(state["tokenizer"]), parse_saved(state["config"]).model.block_size
    except FileNotFoundError:
        raise CheckpointNotFound(run.name, file, tuple(other.file for other in run.checkpoints())) from None
    except (*_UNREADABLE, InvalidData) as error:
        raise CheckpointDamaged(file, f"its tokenizer cannot be read ({type(error).__name__})") from None


def newest_full_state(run: Run, on_damaged: Callable[[str], None]) -> tuple[CheckpointInfo, State] | None:
    """Load the newest intact full state.

    Args:
        run: The run.
        on_damaged: Called with a message about each newer state that cannot be used.

    Returns:
        Sidecar and content; None if no full state is intact.

    Raises:
        CheckpointMismatch: A state is intact, but from a later version of this program.
    """
    for info in run.full_states():
        try:
            return read_state(run, info)
        except (CheckpointDamaged, CheckpointNotFound, CheckpointRefused) as error:
            on_damaged(str(error))
    return None


def load_model(
    run: Run, wanted: str = "best", *, device: str = "cpu", like: ExperimentConfig | None = None
) -> LoadedModel:
    """Resolve a reference to a checkpoint and load its model for inference.

    Args:
        run: The run.
        wanted: Reference as `Run.resolve` takes it.
        device: Device of the parameters, as torch writes it.
        like: See `parse_saved`.

    Returns:
        The model in eval mode and float32, with its configuration, tokenizer and sidecar.

    Raises:
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
        CheckpointDamaged: The bytes are not those of the sidecar.
        CheckpointMismatch: The parameters are not those of the configuration.
    """
    info = run.resolve(wanted)
    if (detail := fallback_detail(wanted, info)) is not None:
        log.warning("%s: %s", FALLBACK, detail)
    return load_checkpoint(run, info, device=device, like=like)


def load_checkpoint(
    run: Run, info: CheckpointInfo, *, device: str = "cpu", like: ExperimentConfig | None = None
) -> LoadedModel:
    """Load the model of a resolved checkpoint for inference.

    Args:
        run: The run.
        info: Sidecar of the checkpoint.
        device: Device of the parameters, as torch writes it.
        like: See `parse_saved`.

    Returns:
        As `load_model`. Its sidecar is the one that describes the bytes in the file.

    Raises:
        CheckpointNotFound: The checkpoint was deleted meanwhile.
        CheckpointDamaged: The bytes are not those of the sidecar.
        CheckpointMismatch: The parameters are not those of the configuration.
    """
    info, state = read_state(run, info)
    config = parse_saved(state["config"], like)
    model = skeleton(config.model)
    load_parameters(model, clean(state["model"]), info.file, assign=True)
    model.tie_head()
    model.requires_grad_(requires_grad=False).to(device).eval()
    return LoadedModel(model, config, Tokenizer.from_dict(state["tokenizer"]), info)


def skeleton(config: ModelConfig) -> GPT:
    """Build a model on the meta device, whose parameters have shapes but no values.

    Args:
        config: Section `model`.

    Returns:
        The model.
    """
    with torch.device("meta"), _SkipInitialization():
        return GPT(config)


def load_parameters(model: GPT, parameters: Mapping[str, Tensor], file: str, *, assign: bool = False) -> None:
    """Copy parameters into a model.

    Args:
        model: The model; it is not changed when an error is raised.
        parameters: Tensors by our parameter names.
        file: Name of their file, for messages.
        assign: Use the tensors themselves instead of copying their values.

    Raises:
        CheckpointMismatch: A parameter is missing, unknown or of another shape.
    """
    check_parameters(model, parameters, file)
    model.load_state_dict(parameters, assign=assign)


def check_parameters(model: GPT, parameters: Mapping[str, Tensor], file: str) -> None:
    """Compare parameters with a model by name and shape.

    Args:
        model: The model.
        parameters: Tensors by our parameter names.
        file: Name of their file, for messages.

    Raises:
        CheckpointMismatch: A parameter is missing, unknown or of another shape.
    """
    ours = model.state_dict()
    wrong = [f"it lacks {name}" for name in ours if name not in parameters]
    wrong += [f"{name} is no parameter of the model" for name in parameters if name not in ours]
    wrong += [
        f"{name} is {tuple(tensor.shape)} there and {tuple(ours[name].shape)} here"
        for name, tensor in parameters.items()
        if name in ours and tensor.shape != ours[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointMismatch(f"{file} does not fit the model: {'; '.join(wrong[:3])}{more}")


def clean(state: State) -> State:
    """Remove the prefixes of wrappers such as torch.compile from parameter names.

    Args:
        state: Values by parameter name.

    Returns:
        The same values by the shorter names.
    """
    return {clean_name(name): value for name, value in state.items()}


def clean_name(name: str) -> str:
    """Remove the prefixes of wrappers from one parameter name.

    Args:
        name: Name in a state_dict.

    Returns:
        The shorter name.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class _SkipInitialization(TorchFunctionMode):
    """Skips the initialization of parameters, which would load a compiler on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
