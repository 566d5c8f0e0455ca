"""Imports a folder of transformers as a run, for generation, attention, and as the start of a training.

Nothing is trusted: shape, arithmetic, names, sizes and tokenizer are compared with ours, and each difference is named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_core.checkpoint import SCHEMA_VERSION, State, skeleton, writer
from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_config
from model_core.entrypoint import Attempt
from model_core.errors import InvalidData, RunExists
from model_core.hf.hf_config import CONFIG, Stored, parse_model_config, read_config_file
from model_core.hf.hf_tokenizer import Found, read_tokenizer
from model_core.hf.tensors import (
    EMBEDDING,
    HEAD,
    StoredTensor,
    our_name,
    stored_shapes,
    stored_tensors,
    transposed,
    weight_files,
)
from model_core.storage.checkpoints import BEST, FINAL
from model_core.storage.files import Layout, next_free_name, require_space, sha256_of
from model_core.storage.run import Run
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_ATTEMPT, _STEP = 1, 0
_LONGEST_SEQUENCE = 1024
_ROWS = 16


def import_folder(folder: Path, name: str, layout: Layout) -> Run:
    """Create a run from a folder; it appears complete, or not at all.

    Args:
        folder: Folder with config.json, tensors, and the tokenizer's files.
        name: Name of the run.
        layout: Directories of the data root.

    Returns:
        The run.

    Raises:
        RunExists: The name is taken.
        InvalidData: The folder is damaged, or is not a GPT-2 like ours; the message names file and value.
        DiskFull: The disk is full.
    """
    path = layout.run(name)
    if path.exists():
        raise RunExists(name, next_free_name(path))
    stored, folder = read_config_file(folder), folder.resolve()
    model = parse_model_config(stored)
    found = read_tokenizer(folder, model.vocab_size)
    config = _experiment(name, model, found.tokenizer)
    state = {
        "schema_version": SCHEMA_VERSION,
        "step": _STEP,
        "model": read_parameters(folder, stored, model),
        "config": config.model_dump(mode="json"),
        "tokenizer": found.tokenizer.to_dict(),
    }
    run = Run.create(path, config, fill=lambda run: _fill(run, state, _origin(folder, stored), found))
    log.info("run imported run=%s folder=%s", name, folder.name)
    return run


def read_parameters(folder: Path, stored: Stored, model: ModelConfig) -> dict[str, Tensor]:
    """Read a folder's parameters, in float32 and in our layout.

    Args:
        folder: Folder with the tensors.
        stored: Its config.json.
        model: Shape that they must have.

    Returns:
        State_dict of our model.

    Raises:
        InvalidData: A tensor is missing, unknown, of another shape or type, or not finite; or the head is not tied.
    """
    expected = stored_shapes(skeleton(model).state_dict())
    with stored_tensors(folder) as tensors:
        named = _by_our_name(tensors)
        _compare(named, expected)
        parameters = {name: transposed(name, _numbers(name, named[name])) for name in expected}
        if HEAD in named and not torch.equal(_numbers(HEAD, named[HEAD]), parameters[EMBEDDING]):
            raise InvalidData(f"{named[HEAD].file}: {HEAD} is not {EMBEDDING}; here the two are one")
    if HEAD not in named and stored.get("tie_word_embeddings", True) is not True:
        raise InvalidData(f"{CONFIG}: tie_word_embeddings is false, and the folder has no {HEAD}")
    return {**parameters, HEAD: parameters[EMBEDDING]}


def _by_our_name(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    named: dict[str, StoredTensor] = {}
    for theirs, tensor in tensors.items():
        if (name := our_name(theirs)) is None:
            continue
        if name in named:
            raise InvalidData(f"{tensor.file} stores {theirs}, and {name} is there already")
        named[name] = tensor
    return named


def _compare(named: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in named]
    wrong += [
        f"{tensor.file} stores {name}, which a GPT-2 does not have"
        for name, tensor in named.items()
        if name not in expected and name != HEAD
    ]
    shapes = {**expected, HEAD: expected[EMBEDDING]}
    wrong += [
        f"{tensor.file}: {name} is {tensor.shape}, and {CONFIG} asks for {shapes[name]}"
        for name, tensor in named.items()
        if name in shapes and tensor.shape != shapes[name]
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InvalidData(f"the weights do not fit: {'; '.join(wrong[:3])}{more}")


def _numbers(name: str, stored: StoredTensor) -> Tensor:
    tensor = stored.read()
    if not tensor.is_floating_point():
        raise InvalidData(f"{stored.file}: {name} holds {tensor.dtype}, not floating-point numbers")
    tensor = tensor.float()
    if not tensor.isfinite().all():
        raise InvalidData(f"{stored.file}: {name} holds values that are not finite: the file is damaged")
    return tensor


def _experiment(name: str, model: ModelConfig, tokenizer: Tokenizer) -> ExperimentConfig:
    """Build the run's configuration; with a dataset of its name it can be trained further."""
    length = min(_LONGEST_SEQUENCE, model.block_size)
    choice: Any = "gpt2" if tokenizer.kind == "gpt2" else {"type": "bpe", "vocab_size": tokenizer.n_vocab}
    tree = {
        "experiment_name": name,
        "model": model.model_dump(mode="json"),
        "training": {"sequence_length": length, "batch_size": _ROWS, "total_batch_size": _ROWS * length},
        "data": {"dataset": name, "tokenizer": choice},
    }
    return parse_config(tree).config


def _origin(folder: Path, stored: Stored) -> dict[str, Any]:
    """Describe the folder by names and hashes, without paths."""
    files = [folder / CONFIG, *weight_files(folder)]
    kept = {key: stored[key] for key in ("model_type", "architectures") if key in stored}
    return {"folder": folder.name, **kept, "files": {path.name: sha256_of(path) for path in files}}


def _fill(run: Run, state: State, origin: Mapping[str, Any], found: Found) -> None:
    run.begin_attempt(_ATTEMPT)
    attempt = Attempt(run.path, _ATTEMPT)
    attempt.emit("start", imported=origin)
    if found.warning is not None:
        attempt.emit("warning", code="tokenizer", detail=found.warning)
    require_space(run.path / BEST, 2 * _size_bytes(state["model"].values()))
    for file in (BEST, FINAL):
        info = run.publish(file, writer(state), attempt=_ATTEMPT, step=_STEP, full=False, loss=None, val_loss=None)
        attempt.emit("checkpoint", step=_STEP, file=file, sha256=info.sha256)
    attempt.facts["step"] = _STEP
    attempt.finish("succeeded")


def _size_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
