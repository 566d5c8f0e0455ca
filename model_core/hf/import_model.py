"""Imports a model of transformers as a run, for generation, attention, and as the start of a training.

The model is a folder, or an archive of one. Nothing is trusted: shape, arithmetic, names, sizes and tokenizer are
compared with ours, and each difference is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_core.checkpoint import SCHEMA_VERSION, State, skeleton, writer
from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_config
from model_core.entrypoint import Attempt
from model_core.errors import InvalidData, RunExists
from model_core.hf.hf_config import CONFIG, Stored, parse_model_config, read_object
from model_core.hf.hf_tokenizer import Found, read_tokenizer
from model_core.hf.model_folder import opened_model
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


@dataclass(frozen=True)
class ImportCallback:
    """Watches an import.

    Attributes:
        check: Called several times; an error from it ends the import, and nothing of it is left.
        progress: Called with the number of tensors that were read, and of all.
    """

    check: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda _done, _of: None


def import_model(
    source: Path,
    name: str,
    layout: Layout,
    *,
    job_id: str | None = None,
    origin: str | None = None,
    callback: ImportCallback | None = None,
) -> Run:
    """Create a run from a folder or an archive; it appears complete, or not at all.

    Args:
        source: Folder with config.json, tensors, and the tokenizer's files; or an archive of one.
        name: Name of the run.
        layout: Directories of the data root.
        job_id: Job that makes the run; None if it is made by hand.
        origin: Name of the source in the run's events; None for that of its file or folder.
        callback: Watches the import.

    Returns:
        The run.

    Raises:
        RunExists: The name is taken.
        InvalidData: The source is damaged, or is not a GPT-2 like ours; the message names file and value.
        DiskFull: The disk is full.
    """
    callback = callback or ImportCallback()
    path = layout.run(name)
    if path.exists():
        raise RunExists(name, next_free_name(path))
    scratch = path.with_name(f".{name}.{os.getpid()}.unpacked.tmp")
    with opened_model(source, scratch, callback.check) as folder:
        stored = read_object(folder / CONFIG)
        model = parse_model_config(stored)
        found = read_tokenizer(folder, model.vocab_size)
        config = _experiment(name, model, found.tokenizer)
        state = {
            "schema_version": SCHEMA_VERSION,
            "step": _STEP,
            "model": read_parameters(folder, stored, model, callback),
            "config": config.model_dump(mode="json"),
            "tokenizer": found.tokenizer.to_dict(),
        }
        start = {"folder": origin or source.resolve().name, **_origin(folder, stored)}

    def fill(run: Run) -> None:
        callback.check()
        _fill(run, state, start, found)
        callback.check()

    run = Run.create(path, config, job_id, fill=fill)
    log.info("run imported run=%s source=%s", name, start["folder"])
    return run


def read_parameters(folder: Path, stored: Stored, model: ModelConfig, callback: ImportCallback) -> dict[str, Tensor]:
    """Read a folder's parameters, in float32 and in our layout.

    Args:
        folder: Folder with the tensors.
        stored: Its config.json.
        model: Shape that they must have.
        callback: Watches the import.

    Returns:
        State_dict of our model.

    Raises:
        InvalidData: A tensor is missing, unknown, of another shape or type, or not finite; or the head is not tied.
    """
    expected = stored_shapes(skeleton(model).state_dict())
    with stored_tensors(folder) as tensors:
        named = _by_our_name(tensors)
        if HEAD in named and EMBEDDING not in named and stored.get("tie_word_embeddings", True) is True:
            named[EMBEDDING] = named.pop(HEAD)  # the tied matrix is stored under the second of its names
        _compare(named, expected)
        parameters: dict[str, Tensor] = {}
        for name in expected:
            parameters[name] = transposed(name, _numbers(name, named[name]))
            callback.check()
            callback.progress(len(parameters), len(expected))
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
    """Describe the files by names and hashes, without paths."""
    files = [folder / CONFIG, *weight_files(folder)]
    kept = {key: stored[key] for key in ("model_type", "architectures") if key in stored}
    return {**kept, "files": {path.name: sha256_of(path) for path in files}}


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
