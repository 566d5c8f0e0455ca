"""Exports a run to a folder that transformers loads with equal logits.

The folder has config.json, the tensors, the tokenizer, settings for generation, a model card, and for models whose
heads are not GPT-2's the class that implements them. It appears when it is complete.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model_core.checkpoint import State, check_parameters, clean, read_state, skeleton
from model_core.config import ExperimentConfig, ModelConfig
from model_core.config_loader import parse_config
from model_core.errors import DiskFull, InvalidParameter
from model_core.hf.export_folder import (
    CARD,
    GENERATION,
    LICENCE_PATTERN,
    WEIGHTS,
    is_complete,
    read_licence,
)
from model_core.hf.hf_config import CONFIG, MODELING, build_config, is_plain
from model_core.hf.hf_tokenizer import write_tokenizer
from model_core.hf.model_card import find_provenance, render_card
from model_core.hf.tensors import HEAD, transposed
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.dataset import dataset_of
from model_core.storage.events import read_events
from model_core.storage.files import Layout, require_space, sync_directory, write_json, write_text
from model_core.storage.run import Run
from model_core.storage.trash import lock_exports
from model_core.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CUSTOM_CODE = Path(__file__).parent / "custom" / MODELING
_MOST_SUPPRESSED = 4096


@dataclass(frozen=True)
class Export:
    """An exported folder.

    Attributes:
        folder: Path of the folder.
        info: Sidecar of its checkpoint.
        files: Size in bytes by name of the file.
    """

    folder: Path
    info: CheckpointInfo
    files: dict[str, int]


def export_run(
    run: Run, folder: Path, *, checkpoint: str = "best", licence: str | None = None, layout: Layout | None = None
) -> Export:
    """Write a run's model to a folder for transformers.

    Args:
        run: The run.
        folder: Folder to create; it may exist if it is empty.
        checkpoint: Reference as `Run.resolve` takes it.
        licence: Licence of the model for its card, as the Hub names licences.
        layout: Directories of the data root, to find the run's dataset; None takes those of its configuration.

    Returns:
        The exported folder.

    Raises:
        InvalidParameter: The folder is not empty, or the licence is not a valid name.
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
        CheckpointDamaged: The bytes are not those of the sidecar.
        CheckpointMismatch: The parameters are not those of the configuration.
        DiskFull: The disk is full; nothing of the folder is left.
    """
    _refuse_unknown(licence)
    refuse_filled(folder)
    info, state = read_state(run, run.resolve(checkpoint))
    return _export(run, info, state, folder, licence, layout)


def ensure_export(
    run: Run,
    layout: Layout,
    *,
    checkpoint: str = "best",
    licence: str | None = None,
    check: Callable[[], None] = lambda: None,
) -> Export:
    """Export to the data root's folder for a checkpoint, unless that is complete. A partial export is made anew.

    Args:
        run: The run.
        layout: Directories of a data root.
        checkpoint: Reference as `Run.resolve` takes it.
        licence: Licence of the model. An existing export that states another gets a new card; None keeps its own.
        check: Called several times; an error from it ends the export, and nothing of it is left.

    Returns:
        The exported folder.

    Raises:
        ModelCoreError: See `export_run`.
    """
    _refuse_unknown(licence)
    info, state = read_state(run, run.resolve(checkpoint))
    check()
    folder = layout.export(run.name, info.file, info.sha256)
    assert folder is not None, "only a data root has a place for exports"
    with lock_exports(layout, run.name, check):
        if is_complete(folder):
            if licence not in {None, read_licence(folder)}:
                config, tokenizer = _described(state)
                write_text(folder / CARD, _card(run, info, config, tokenizer, licence, layout))
            return _export_at(folder, info)
        _set_aside(folder)
        for leftover in folder.parent.glob(".*.tmp"):  # left by a process that was killed, or by a copy
            shutil.rmtree(leftover)
        return _export(run, info, state, folder, licence, layout, check)


def refuse_filled(folder: Path) -> None:
    """Refuse to write to a folder with content.

    Args:
        folder: The folder, which need not exist.

    Raises:
        InvalidParameter: The folder is not empty, or is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise InvalidParameter(f"{str(folder)!r} is there already; name a folder that is not, or is empty")


def write_parameters(parameters: dict[str, Tensor], path: Path) -> None:
    """Write our parameters in the names and layouts of transformers.

    Args:
        parameters: Tensors by our names. The mapping is emptied, so that at most one tensor is in memory twice.
        path: Path of the safetensors file.

    Raises:
        DiskFull: The disk is full.
    """
    parameters.pop(HEAD)  # it is the token embedding
    require_space(path, sum(tensor.nbytes for tensor in parameters.values()))
    theirs = {name: transposed(name, parameters.pop(name)) for name in sorted(parameters)}
    try:
        save_file(theirs, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise DiskFull(path) from None
        raise
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _set_aside(folder: Path) -> None:
    """Move a partial export away."""
    if folder.is_dir() and not folder.is_symlink():
        log.warning("incomplete export set aside folder=%s", folder.name)
        aside = folder.with_name(f".{folder.name}.incomplete.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _export(
    run: Run,
    info: CheckpointInfo,
    state: State,
    folder: Path,
    licence: str | None,
    layout: Layout | None,
    check: Callable[[], None] = lambda: None,
) -> Export:
    config, tokenizer = _described(state)
    text = _card(run, info, config, tokenizer, licence, layout)
    parameters = clean(state.pop("model"))
    state.clear()  # frees the optimizer's moments
    check_parameters(skeleton(config.model), parameters, info.file)

    def fill(building: Path) -> None:
        _write_rest(building, config, tokenizer)
        write_parameters(parameters, building / WEIGHTS)
        shutil.copymode(building / CONFIG, building / WEIGHTS)  # safetensors gives only its owner access
        write_text(building / CARD, text)
        check()

    _make(folder, fill)
    log.info("run exported run=%s checkpoint=%s folder=%s", run.name, info.file, folder.name)
    return _export_at(folder, info)


def _described(state: State) -> tuple[ExperimentConfig, Tokenizer]:
    return parse_config(state["config"]).config, Tokenizer.from_dict(state["tokenizer"])


def _card(
    run: Run,
    info: CheckpointInfo,
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    licence: str | None,
    layout: Layout | None,
) -> str:
    provenance = find_provenance(config.data, dataset_of(config, layout or Layout.of(config)), info.created_at)
    return render_card(run.name, info, config, tokenizer, provenance, licence=licence, imported=_imported(run))


def _export_at(folder: Path, info: CheckpointInfo) -> Export:
    return Export(folder, info, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


def _refuse_unknown(licence: str | None) -> None:
    if licence is not None and not re.match(LICENCE_PATTERN, licence):
        raise InvalidParameter(f"licence {licence!r} is no name such as mit, apache-2.0 or cc-by-4.0")


def _imported(run: Run) -> str | None:
    """Name of the folder from which a run was imported; None if it was trained here."""
    starts = read_events(run.events, types={"start"})
    return next((str(start["imported"]["folder"]) for start in starts if "imported" in start), None)


def _write_rest(folder: Path, config: ExperimentConfig, tokenizer: Tokenizer) -> None:
    write_json(folder / CONFIG, build_config(config.model, tokenizer.eot))
    write_json(folder / GENERATION, _generation(config.model, tokenizer))
    write_tokenizer(tokenizer, folder, config.model.block_size)
    if not is_plain(config.model):
        write_text(folder / MODELING, _CUSTOM_CODE.read_text(encoding="utf-8"))


def _generation(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Settings for generation: ids that only pad the vocabulary are never generated."""
    padding = list(range(tokenizer.n_vocab, model.vocab_size))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot)
    return {**ids, **({"suppress_tokens": padding} if 0 < len(padding) <= _MOST_SUPPRESSED else {})}


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it when it is complete."""
    folder = folder.resolve()
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        fill(building)
        sync_directory(building)
        refuse_filled(folder)
        building.replace(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_directory(folder.parent)
