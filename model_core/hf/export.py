"""From a run to a folder that transformers loads with equal logits.

config.json, the weights, the tokenizer, settings for writing, a model card, and for models whose heads are not
GPT-2's the class that knows them. The folder appears when all of it is there.
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
    licence_of,
)
from model_core.hf.hf_config import CONFIG, MODELING, config_of, is_plain
from model_core.hf.hf_tokenizer import write_tokenizer
from model_core.hf.model_card import card, provenance_of
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
    """What was written.

    Attributes:
        folder: Where.
        info: The checkpoint that is in it.
        files: Names and sizes in bytes.
    """

    folder: Path
    info: CheckpointInfo
    files: dict[str, int]


def export_run(
    run: Run, folder: Path, *, checkpoint: str = "best", licence: str | None = None, layout: Layout | None = None
) -> Export:
    """Write a run's model as a folder of transformers.

    Args:
        run: The run.
        folder: It is made; an empty one may be there.
        checkpoint: As `Run.resolve` takes it.
        licence: Of the model, for its card, as the Hub names licences.
        layout: Where the run's dataset lies, of which the card tells; None: where its configuration says.

    Raises:
        InvalidParameter: Something is in the folder, or the licence is no name of one.
        CheckpointNotReady: The run has no checkpoint; CheckpointNotFound: it has others.
        CheckpointDamaged: The checkpoint's bytes are wrong.
        CheckpointMismatch: Its weights are not those of its configuration.
        DiskFull: Nothing of the folder is left.
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
    """Export to the place that a data root has for it, unless the same checkpoint has been exported there.

    What is left of an export that somebody cut off is made anew.

    Args:
        run: The run.
        layout: Of a data root.
        checkpoint: See `export_run`, also for the rest and for what is raised.
        licence: Of the model. An export that is there and states another gets a new card; None: it keeps its own.
        check: Called now and then; what it raises breaks the export off, and nothing of it is left.
    """
    _refuse_unknown(licence)
    info, state = read_state(run, run.resolve(checkpoint))
    check()
    folder = layout.export(run.name, info.file, info.sha256)
    assert folder is not None, "only a data root has a place for exports"
    with lock_exports(layout, run.name, check):
        if is_complete(folder):
            if licence not in {None, licence_of(folder)}:
                write_text(folder / CARD, _card(run, info, state, licence, layout))
            return _told(folder, info)
        _set_aside(folder)
        for leftover in folder.parent.glob(".*.tmp"):  # of a process that was killed, or of a copy
            shutil.rmtree(leftover)
        return _export(run, info, state, folder, licence, layout, check)


def _set_aside(folder: Path) -> None:
    """Take what is left of an export out of sight."""
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
    told = _card(run, info, state, licence, layout)
    weights = clean(state.pop("model"))
    state.clear()
    check_parameters(skeleton(config.model), weights, info.file)

    def fill(building: Path) -> None:
        _write_rest(building, config, tokenizer)
        write_weights(weights, building / WEIGHTS)
        shutil.copymode(building / CONFIG, building / WEIGHTS)  # safetensors lets its owner alone read it
        write_text(building / CARD, told)
        check()

    _make(folder, fill)
    log.info("run exported run=%s checkpoint=%s folder=%s", run.name, info.file, folder.name)
    return _told(folder, info)


def _described(state: State) -> tuple[ExperimentConfig, Tokenizer]:
    return parse_config(state["config"]).config, Tokenizer.from_dict(state["tokenizer"])


def _card(run: Run, info: CheckpointInfo, state: State, licence: str | None, layout: Layout | None) -> str:
    config, tokenizer = _described(state)
    provenance = provenance_of(config.data, dataset_of(config, layout or Layout.of(config)), info.created_at)
    return card(run.name, info, config, tokenizer, provenance, licence=licence, imported=_imported(run))


def _told(folder: Path, info: CheckpointInfo) -> Export:
    return Export(folder, info, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


def _refuse_unknown(licence: str | None) -> None:
    if licence is not None and not re.match(LICENCE_PATTERN, licence):
        raise InvalidParameter(f"licence {licence!r} is no name such as mit, apache-2.0 or cc-by-4.0")


def refuse_filled(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        InvalidParameter: The folder holds something, or is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise InvalidParameter(f"{str(folder)!r} is there already; name a folder that is not, or is empty")


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights of ours as transformers names and lays them; each is turned and given up in its turn.

    Args:
        weights: By our names; emptied, so that never more than one tensor is in memory twice.
        path: The safetensors file.

    Raises:
        DiskFull: There is no room.
    """
    weights.pop(HEAD)  # it is the token embedding
    require_space(path, sum(tensor.nbytes for tensor in weights.values()))
    theirs = {name: transposed(name, weights.pop(name)) for name in sorted(weights)}
    try:
        save_file(theirs, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise DiskFull(path) from None
        raise
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _imported(run: Run) -> str | None:
    """Name of the folder that a run was made of, if it was."""
    starts = read_events(run.events, types={"start"})
    return next((str(start["imported"]["folder"]) for start in starts if "imported" in start), None)


def _write_rest(folder: Path, config: ExperimentConfig, tokenizer: Tokenizer) -> None:
    write_json(folder / CONFIG, config_of(config.model, tokenizer.eot))
    write_json(folder / GENERATION, _generation(config.model, tokenizer))
    write_tokenizer(tokenizer, folder, config.model.block_size)
    if not is_plain(config.model):
        write_text(folder / MODELING, _CUSTOM_CODE.read_text(encoding="utf-8"))


def _generation(model: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """How to write with it: ids that only pad the vocabulary are never written."""
    padding = list(range(tokenizer.n_vocab, model.vocab_size))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot)
    return {**ids, **({"suppress_tokens": padding} if 0 < len(padding) <= _MOST_SUPPRESSED else {})}


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let a complete folder appear."""
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
