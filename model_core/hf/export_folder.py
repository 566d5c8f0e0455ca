"""Exported folders of a run: their names, contents and completeness. Torch-free, because the service reads them too.

A folder is named by its checkpoint and the first letters of its hash, so another checkpoint under the same name has
another export. It appears complete, by one rename. An interrupted copy or removal leaves a missing or empty file, or
parameters shorter than their header says; such a folder does not count as an export.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from model_core.errors import InvalidData
from model_core.hf.hf_config import CONFIG, MODELING, read_object
from model_core.hf.hf_tokenizer import MERGES, SETTINGS, SPECIAL, TOKENIZER, VOCABULARY
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run

WEIGHTS, GENERATION, CARD = "model.safetensors", "generation_config.json", "README.md"
FILES = (CONFIG, WEIGHTS, GENERATION, VOCABULARY, MERGES, TOKENIZER, SETTINGS, SPECIAL, CARD)  # of every model
_SIZE_BYTES = 8  # the little-endian length of the header, which precedes it
LICENCE_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,63}$"  # names of the Hub, such as mit, apache-2.0, cc-by-4.0
_NAME = re.compile(r"(model_.+)-([0-9a-f]{8})")


@dataclass(frozen=True)
class ExportInfo:
    """An exported folder in a data root.

    Attributes:
        name: Name of the folder.
        file: Checkpoint from which it was made.
        sha256: Hash of that checkpoint; None once the run has another, or none, under that name.
        size_bytes: Size of all files.
        created_at: When it was made, RFC 3339 UTC.
        licence: Licence of the model as stated in its card; None if it states none.
    """

    name: str
    file: str
    sha256: str | None
    size_bytes: int
    created_at: str
    licence: str | None = None


def list_exports(layout: Layout, run: Run) -> list[ExportInfo]:
    """List the exports of a run.

    Args:
        layout: Directories of the data root.
        run: The run.

    Returns:
        Complete exports, by name.
    """
    present = {Path(info.file).stem: info.sha256 for info in run.checkpoints()}
    home = layout.exports_of(run.name)
    folders = sorted(home.iterdir()) if home.is_dir() else []
    return [info for folder in folders if (info := _info_of(folder, present)) is not None]


def find_export(layout: Layout, run: Run, checkpoint: CheckpointInfo) -> ExportInfo | None:
    """Find the export of one checkpoint.

    Args:
        layout: Directories of the data root.
        run: The run.
        checkpoint: Sidecar of the checkpoint.

    Returns:
        The export; None if there is none.
    """
    folder = layout.export(run.name, checkpoint.file, checkpoint.sha256)
    return next((info for info in list_exports(layout, run) if folder and info.name == folder.name), None)


def export_time(folder: Path) -> str:
    """Return when a complete export was made.

    Args:
        folder: The export.

    Returns:
        RFC 3339 UTC with milliseconds.
    """
    moment = datetime.fromtimestamp((folder / CONFIG).stat().st_mtime, UTC)  # this file is written once
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_licence(folder: Path) -> str | None:
    """Read the licence from the card of an export.

    Args:
        folder: The export.

    Returns:
        The licence; None if the card states none or cannot be read.
    """
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---\n")[1])
        return str(head["license"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):  # a person may have edited it
        return None


def is_complete(folder: Path) -> bool:
    """Check that every file of an export exists and that the tensors are not truncated; other files are ignored.

    Args:
        folder: The export.

    Returns:
        Whether it is complete.
    """
    try:
        config = read_object(folder / CONFIG)
        code = (MODELING,) if "auto_map" in config else ()
        if code and "per_layer_config" not in config:
            return False  # its code is of an earlier version, which fails in transformers 4
        return all((folder / name).stat().st_size for name in (*FILES, *code)) and _is_whole(folder / WEIGHTS)
    except (OSError, InvalidData):
        return False


def _info_of(folder: Path, present: dict[str, str]) -> ExportInfo | None:
    """Describe a folder; None for one that is not a complete export, or was deleted meanwhile."""
    name = _NAME.fullmatch(folder.name)
    if name is None or not is_complete(folder):
        return None
    stem, digest = name.groups()
    sha256 = present.get(stem, "")
    try:
        size_bytes, created_at = sum(path.stat().st_size for path in folder.iterdir()), export_time(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    present_hash = sha256 if sha256.startswith(digest) else None
    return ExportInfo(folder.name, f"{stem}.pt", present_hash, size_bytes, created_at, read_licence(folder))


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file has the bytes of all tensors in its header."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        begin = _SIZE_BYTES + int.from_bytes(file.read(_SIZE_BYTES), "little")
        if begin > size:
            return False
        try:
            header = json.loads(file.read(begin - _SIZE_BYTES))
            ends = [facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            return False
    return size == begin + max(ends, default=0)
